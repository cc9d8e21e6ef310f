"""The base of targets that are prepared before a student's first step."""

from abc import abstractmethod
from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer

from kdpl.preparation.inputs import TargetInputs
from kdpl.student import StudentDistillation
from kdpl.targets import Target


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
