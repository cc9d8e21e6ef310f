"""The base of targets that are prepared before a student's first step, and kept in a file."""

from abc import abstractmethod

import torch
from torch import Tensor

from kdpl.targets import Target
from kdpl.targets.inputs import TargetInputs

REMEDY = "remove it, or choose another --out"
"""What to do about a file of targets that was made from something else."""


class PreparedTarget(Target):
    """A target that is set up once for all unlabelled images, before the first step of a fit."""

    @abstractmethod
    def prepare(self, inputs: TargetInputs) -> None:
        """Set up what ``logits`` needs; called on all processes."""


def rows_of(images: Tensor) -> Tensor:
    """Return the row of each image of the pool, by its index there; -1 for one that has none."""
    rows = torch.full((int(images.max()) + 1,), -1)
    rows[images] = torch.arange(len(images))
    return rows
