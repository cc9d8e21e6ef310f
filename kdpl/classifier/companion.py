"""Files that rooms keep in a classifier's folder: thresholds, further scores, a pool sample."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

from torch import Tensor

from kdpl.class_vectors import ClassVectors
from kdpl.runtime import plugins
from kdpl.tasks import Predicted

GROUP = "companions"
"""Entry points ``kdpl.companions`` name subclasses of ``Companion``."""


class HeldOut(NamedTuple):
    """A classifier's output for N validation images: features [N, D], logits [N, C], labels [N]."""

    features: Tensor
    logits: Tensor
    labels: Tensor


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


class Companion(ABC):
    """An object that is saved beside a classifier and read with it. Its class is an entry point.

    Attributes:
        file: Name of its file in the classifier's folder.
    """

    file: ClassVar[str]

    @classmethod
    @abstractmethod
    def made_from(cls, evidence: Evidence) -> Self | None:
        """Make it of a finished student, or return None where the evidence does not suffice."""

    @abstractmethod
    def save(self, folder: Path, classifier: str) -> None:
        """Write its file, atomically, with the fingerprint of the classifier."""

    @classmethod
    def read(cls, folder: Path, classifier: str, width: int) -> Self | None:
        """Read the file of a classifier by fingerprint and width D; None if not needed to predict.

        ArtifactError if it is damaged, or of another classifier.
        """
        return None

    def calibrated(self, logits: Tensor, labels: Tensor) -> Self | None:
        """Make it anew of held-out logits [N, C] and labels [N]; None if it rests on no labels."""
        return None

    def further_scores(
        self, features: Tensor, class_vectors: Tensor, logit_scale: float
    ) -> dict[str, Tensor]:
        """Return further scores by name, [B] in 0 to 1, of features [B, D]; above 0.5 means yes."""
        return {}

    def metadata(self, num_classes: int) -> dict[str, str]:
        """Return what exported files say of it, as JSON by name."""
        return {}


def companion_kinds() -> dict[str, type[Companion]]:
    """Return the classes of all rooms by the names of their entry points."""
    return plugins.load_all(GROUP)
