"""Callbacks for averages, class vectors, checkpoints, loggers, interruptions and measurements.

This module exports the callbacks of the stages; the commands add the others.
"""

from kdpl.callbacks.averaging import GaussianPromptAveraging
from kdpl.callbacks.handover import FreezeClassVectors, SaveClassifier

__all__ = ["FreezeClassVectors", "GaussianPromptAveraging", "SaveClassifier"]
