"""Base of targets that are prepared before a student's first step, and kept in a file."""

from abc import abstractmethod

import torch
from torch import Tensor

from kdpl.targets import Target
from kdpl.targets.inputs import TargetInputs

REMEDY = "remove it, or choose another --out"
"""Remedy for a file of targets of another origin."""


class PreparedTarget(Target):
    """Target that is prepared once for all unlabelled images, before the first step of a fit."""

    @abstractmethod
    def prepare(self, inputs: TargetInputs) -> None:
        """Prepare the values for ``logits``; called on all processes."""


def rows_of(images: Tensor) -> Tensor:
    """Return the row of each image by its index in the pool; -1 for images without a row."""
    rows = torch.full((int(images.max()) + 1,), -1)
    rows[images] = torch.arange(len(images))
    return rows
