"""Callbacks for averages, class vectors, checkpoints, pictures, interruptions and measurements.

Of the stages' own callbacks the names are here; the commands add those of the other files.
"""

from kdpl.callbacks.averaging import GaussianPromptAveraging
from kdpl.callbacks.enough_images import EnoughImages
from kdpl.callbacks.handover import FreezeClassVectors, SaveClassifier

__all__ = [
    "EnoughImages",
    "FreezeClassVectors",
    "GaussianPromptAveraging",
    "SaveClassifier",
]
