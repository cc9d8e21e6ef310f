"""Callbacks of both stages; the commands add further ones."""

from kdpl.callbacks.averaging import GaussianPromptAveraging
from kdpl.callbacks.handover import FreezeClassVectors, SaveClassifier

__all__ = ["FreezeClassVectors", "GaussianPromptAveraging", "SaveClassifier"]
