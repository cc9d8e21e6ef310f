"""What a finished student shows of images, from which companions of its classifier are made."""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from torch import Tensor

from kdpl.class_vectors import ClassVectors
from kdpl.classifier.companion import Companion
from kdpl.tasks import Predicted


class HeldOut(NamedTuple):
    """A classifier's output for N validation images, of which no two are of one group.

    Attributes:
        features: float [N, D].
        logits: float [N, C].
        labels: int64 [N].
        sampled: Whether so many images of each class were drawn, which says nothing of the share of
            errors among images as they come.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    sampled: bool = False


@dataclass(frozen=True)
class Evidence:
    """A finished student's view of images, from which companions are made.

    Attributes:
        folder: The student's run.
        vectors: The student's class vectors.
        logit_scale: Its factor on cosine similarities.
        held_out: The validation images; None without any.
        pool: A sample of the unlabelled images, those included that a filter left out.
        kept: Those of the sample that no filter left out.
        trained: If it has learned from the pool, in at least one step.
    """

    folder: Path
    vectors: ClassVectors
    logit_scale: float
    held_out: HeldOut | None
    pool: list[Predicted]
    kept: list[Predicted]
    trained: bool


class LearnedCompanion(Companion):
    """A companion that is made when its student is finished."""

    @classmethod
    @abstractmethod
    def made_from(cls, evidence: Evidence) -> Self | None:
        """Make it of a finished student, or return None where the evidence does not suffice."""
