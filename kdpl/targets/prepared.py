"""The base of targets that are prepared before a student's first step, and kept in a file."""

from abc import abstractmethod
from typing import cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kdpl.student import StudentDistillation
from kdpl.targets import Target
from kdpl.targets.inputs import TargetInputs

REMEDY = "remove it, or choose another --out"
"""What to do about a file of targets that was made from something else."""


class PreparedTarget(Target):
    """A target that is set up once for all unlabelled images, before the first step of a fit."""

    @abstractmethod
    def prepare(self, inputs: TargetInputs) -> None:
        """Set up what ``logits`` needs; called on all processes."""

    def callbacks(self) -> list[Callback]:
        """Return the callback that prepares it."""
        return [PrepareTarget(self)]


class PrepareTarget(Callback):
    """Prepares the target that the student learns, on all processes."""

    def __init__(self, target: PreparedTarget) -> None:
        self.target = target

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the target, before the training loader is made."""
        self.target.prepare(TargetInputs(trainer, cast(StudentDistillation, pl_module)))


def rows_of(images: Tensor) -> Tensor:
    """Return the row of each image of the pool, by its index there; -1 for one that has none."""
    rows = torch.full((int(images.max()) + 1,), -1)
    rows[images] = torch.arange(len(images))
    return rows
