"""Files beside a classifier, such as thresholds and further scores."""

from abc import ABC, abstractmethod
from pathlib import Path
from pkgutil import resolve_name
from typing import ClassVar, Self

from torch import Tensor

_KINDS = {
    "held_out": "kdpl.confidence.held_out:HeldOutScores",
    "unknown": "kdpl.confidence.unknown:Unknown",
}
"""Companions by name, as dotted paths: their files import this one."""


class Companion(ABC):
    """An object that is saved and read with a classifier.

    Attributes:
        file: Name of its file in the classifier's folder, with the ending ``.json`` or
            ``.safetensors``: a classifier's folder with other files is not replaced.
    """

    file: ClassVar[str]

    @abstractmethod
    def save(self, folder: Path, classifier: str) -> None:
        """Write its file, atomically, with the fingerprint of the classifier."""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path, classifier: str, width: int) -> Self:
        """Read the file for a classifier's fingerprint and width D.

        ArtifactError if it is damaged, or of another classifier.
        """

    def calibrated(
        self, features: Tensor, class_vectors: Tensor, logit_scale: float, labels: Tensor
    ) -> Self:
        """Return it for held-out images with features [V, D] and labels [V]."""
        return self

    def further_scores(
        self, features: Tensor, class_vectors: Tensor, logit_scale: float
    ) -> dict[str, Tensor]:
        """Return further scores by name, [B] in [0, 1], of features [B, D]; above 0.5 means yes."""
        return {}

    def metadata(self, num_classes: int) -> dict[str, str]:
        """Return its metadata for exported files, as JSON by name."""
        return {}


def companion_kinds() -> dict[str, type[Companion]]:
    """Return the companion classes by name."""
    return {name: resolve_name(path) for name, path in _KINDS.items()}


def read_companions(folder: Path, classifier: str, width: int) -> dict[str, Companion]:
    """Read the companions in a classifier's folder, by name.

    Arguments and errors are as in ``Companion.read``.
    """
    return {
        name: kind.read(folder, classifier, width)
        for name, kind in companion_kinds().items()
        if (folder / kind.file).is_file()
    }
