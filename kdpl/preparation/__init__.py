"""Targets that are prepared before the first step, from a teacher's features of all images."""

from kdpl.preparation.inputs import ImageFeatures, TargetInputs
from kdpl.preparation.target import PreparedTarget

__all__ = ["ImageFeatures", "PreparedTarget", "TargetInputs"]
