"""Targets of the student: ``Target`` and its subclasses."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor

from kdpl.runtime import plugins
from kdpl.runtime.configs import find_class

if TYPE_CHECKING:
    from kdpl.targets.inputs import TargetInputs

__all__ = ["PreparedTarget", "Target", "build_target", "target_class"]


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
        """True if ``logits`` depends on the teacher's prediction; otherwise no step runs it."""
        return True

    def logits(self, predicted: Tensor, indices: Tensor) -> Tensor:
        """Return logits of the target distribution, such as log probabilities, [B, C].

        Args:
            predicted: The teacher's logits of the views, float32 [B, C]; empty if the target does
                not use them.
            indices: Indices of the images in the list of unlabelled images, [B].
        """
        return predicted


class PreparedTarget(Target, ABC):
    """Target that is prepared once for all unlabelled images, before the first step of a fit."""

    @abstractmethod
    def prepare(self, inputs: "TargetInputs") -> None:
        """Prepare the values for ``logits``, kept in a file; called on all processes."""


def build_target(target: Target | str) -> Target:
    """Build a target by its name or dotted path, or return it unchanged; ConfigError if unknown.

    The names are ``teacher``, the published target, ``refined``, and those that plugins add.
    """
    return target if isinstance(target, Target) else target_class(target)()


def target_class(name: str) -> type[Target]:
    """Return the class of a target by its name or dotted path; errors as in ``build_target``."""
    named = {
        "teacher": "kdpl.targets.Target",
        "refined": "kdpl.targets.refinement.target.Refined",
        **{name: path.replace(":", ".") for name, path in plugins.paths("targets").items()},
    }
    return find_class(name, named, Target, "target")
