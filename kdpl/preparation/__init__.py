"""Targets that are prepared before the first step, from a teacher's features of all images."""

from kdpl.preparation.inputs import TargetInputs
from kdpl.preparation.target import PreparedTarget

__all__ = ["PreparedTarget", "TargetInputs"]
