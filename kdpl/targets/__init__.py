"""Targets of the student: ``Target`` and its subclasses."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from kdpl.runtime.configs import find_class
from kdpl.runtime.origin import Origin

if TYPE_CHECKING:
    from kdpl.targets.inputs import TargetInputs

__all__ = ["PreparedTarget", "Target", "TargetValues", "build_target", "target_class"]

GatheredT = TypeVar("GatheredT")


class Target:
    """The distribution that the student learns; here, as published, the teacher's prediction.

    A subclass is another target; the arguments of its ``__init__`` are its settings.
    """

    @classmethod
    def require_task(cls, task: str) -> None:
        """Raise a ConfigError if it does not support a task, by name; this target supports all."""
        return

    @property
    def uses_teacher(self) -> bool:
        """True if steps may need the teacher's prediction; otherwise no step runs it."""
        return True

    def logits(self, predicted: Tensor, indices: Tensor) -> Tensor:
        """Return logits of the target distribution, such as log probabilities, [B, C].

        Args:
            predicted: The teacher's logits of the views, float32 [B, C], which the loss divides by
                its temperature τ. Empty if the target does not use them.
            indices: Indices of the images in the list of unlabelled images, [B].
        """
        return predicted


@dataclass(frozen=True, eq=False)
class TargetValues:
    """Values of a prepared target.

    Attributes:
        images: Sorted indices of N images in the list of unlabelled images, int64 [N].
        logits: Logits of their target distributions, float [N, C].
    """

    images: Tensor
    logits: Tensor

    def to(self, device: torch.device) -> "TargetValues":
        """Return the values on a device."""
        return TargetValues(self.images.to(device), self.logits.to(device))

    def of(self, indices: Tensor) -> Tensor:
        """Return the logits of some of the images, float32 [B, C]."""
        return self.logits[torch.searchsorted(self.images, indices)].float()


class ComputedTarget(Protocol):
    """Values of a prepared target that can be kept in a file."""

    def save(self, path: Path) -> None:
        """Write a file atomically."""


class PreparedTarget(Target, ABC, Generic[GatheredT]):
    """Target whose values are computed for all unlabelled images, before the first step of a fit.

    ``prepare_student`` (``kdpl/targets/plan.py``) calls the methods in their order below. Steps
    read the values that ``load`` returns; without any, they call ``logits`` with the teacher's.

    Attributes:
        file: Name of the values' file in a run's folder, from which a resumed run reads them.
    """

    file: ClassVar[str]

    def settings(self, inputs: "TargetInputs") -> Mapping[str, Any]:
        """Return what the values depend on beside ``TargetInputs.origin``."""
        return {"target": vars(self)}

    @abstractmethod
    def gather(self, inputs: "TargetInputs") -> GatheredT:
        """Collect features, predictions and labels; called on all processes."""

    @abstractmethod
    def compute(self, gathered: GatheredT, made_from: Origin) -> ComputedTarget:
        """Compute the values, which keep their origin; a pure function, called on one process."""

    @abstractmethod
    def load(self, path: Path) -> tuple[TargetValues | None, Origin | None]:
        """Read values and their origin; no values stand for the teacher's predictions."""

    def write_table(self, path: Path, images: Sequence[str]) -> None:
        """Write a table for people beside the values at a path; by default, none."""
        return


def build_target(target: Target | str) -> Target:
    """Build a target by its name or dotted path, or return it unchanged; ConfigError if unknown.

    The names are ``teacher``, the published target, ``refined``, ``labeled`` and ``local_views``.
    """
    return target if isinstance(target, Target) else target_class(target)()


def target_class(name: str) -> type[Target]:
    """Return the class of a target by its name or dotted path; errors as in ``build_target``."""
    named = {
        "teacher": "kdpl.targets.Target",
        "refined": "kdpl.targets.refinement.target.Refined",
        "labeled": "kdpl.targets.labeled.Labeled",
        "local_views": "kdpl.multilabel.local_views.LocalViews",
    }
    return find_class(name, named, Target, "target")
