"""A finished student's outputs, from which the companions of its classifier are made."""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from torch import Tensor

from kdpl.class_vectors import ClassVectors
from kdpl.classifier.companion import Companion
from kdpl.tasks import Predicted


class ValidationOutputs(NamedTuple):
    """A classifier's outputs for N validation images, at most one of each group.

    Attributes:
        features: float [N, D].
        logits: float [N, C].
        labels: int64 [N].
        sampled: Whether a fixed number of images of each class was drawn. Such a sample does not
            show the share of errors among images as they come.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    sampled: bool = False


@dataclass(frozen=True)
class StudentOutputs:
    """A finished student's outputs for validation images and a sample of the pool.

    Attributes:
        folder: The student's run.
        vectors: The student's class vectors.
        logit_scale: The student's factor on cosine similarities.
        validation: Outputs for the validation images; None without any.
        pool: Predictions for a sample of the unlabelled images, before any filter.
        kept: Predictions for the images of the sample that no filter left out.
        trained: Whether the student learned from the pool, in at least one step.
    """

    folder: Path
    vectors: ClassVectors
    logit_scale: float
    validation: ValidationOutputs | None
    pool: list[Predicted]
    kept: list[Predicted]
    trained: bool


class LearnedCompanion(Companion):
    """A companion that is made when its student is finished."""

    @classmethod
    @abstractmethod
    def made_from(cls, outputs: StudentOutputs) -> Self | None:
        """Make the companion from a finished student's outputs; None if they do not suffice."""
