"""Callbacks for averages, class vectors, checkpoints, pictures, interruptions and measurements.

Of the stages' own callbacks the names are here; the commands add those of the other files.
"""

from kdpl.callbacks.averaging import GaussianPromptAveraging
from kdpl.callbacks.handover import FreezeClassVectors, SaveClassifier
from kdpl.callbacks.student_checks import EnoughImages, SameViews
from kdpl.callbacks.target_preparation import PrepareTargets, pool_filters

__all__ = [
    "EnoughImages",
    "FreezeClassVectors",
    "GaussianPromptAveraging",
    "PrepareTargets",
    "SameViews",
    "SaveClassifier",
    "pool_filters",
]
