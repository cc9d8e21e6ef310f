"""Files of plugins in a classifier's folder, such as thresholds, further scores, a pool sample."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Self, TypeVar

from pydantic import Field
from torch import Tensor

from kdpl.errors import ArtifactError
from kdpl.runtime import plugins
from kdpl.runtime.artifacts import metadata, parse_metadata, read_tensors


class Companion(ABC):
    """An object that is saved and read with a classifier. A plugin registers its class.

    Attributes:
        file: Name of its file in the classifier's folder, with the ending ``.json`` or
            ``.safetensors``: a classifier's folder with other files is not replaced.
    """

    file: ClassVar[str]

    @abstractmethod
    def save(self, folder: Path, classifier: str) -> None:
        """Write its file, atomically, with the fingerprint of the classifier."""

    @classmethod
    def read(cls, folder: Path, classifier: str, width: int) -> Self | None:
        """Read the file for a classifier's fingerprint and width D; None if not used to predict.

        ArtifactError if it is damaged, or of another classifier.
        """
        return None

    @classmethod
    def pool_features(cls, folder: Path, classifier: str, shape: Sequence[int]) -> Tensor | None:
        """Read its features [N, D] of the pool if any; ``shape`` is that of the class vectors."""
        return None

    def calibrated(self, logits: Tensor, labels: Tensor) -> Self | None:
        """Recompute it from held-out logits [N, C] and labels [N]; None if it uses no labels."""
        return None

    def further_scores(
        self, features: Tensor, class_vectors: Tensor, logit_scale: float
    ) -> dict[str, Tensor]:
        """Return further scores by name, [B] in [0, 1], of features [B, D]; above 0.5 means yes."""
        return {}

    def metadata(self, num_classes: int) -> dict[str, str]:
        """Return its metadata for exported files, as JSON by name."""
        return {}


def companion_kinds() -> dict[str, type[Companion]]:
    """Return the companion classes of all plugins by name."""
    return plugins.load_all("companions")


@metadata
class OfClassifier:
    """The fields of a file that is kept beside a classifier: its fingerprint."""

    classifier: Annotated[str, Field(pattern="^[0-9a-f]+$", max_length=200)]


C = TypeVar("C", bound=OfClassifier)


def read_of_classifier(
    path: Path,
    kind: str,
    version: int,
    fields_of: type[C],
    classifier: str,
    remedy: str,
    shapes: Mapping[str, str],
    **sizes: int,
) -> tuple[dict[str, Tensor], C]:
    """Read the tensors and fields of a file that is kept beside a classifier.

    ``shapes`` are type and axes of each tensor, as in ``float32 N D``. Axes of one name have one
    size, from ``sizes`` if it is there; only one in lower case may be empty.
    """
    tensors, read = read_tensors(path, kind, version, remedy)
    fields = parse_metadata(fields_of, read, str(path), remedy)
    if fields.classifier != classifier:
        raise ArtifactError(f"{path} is of another classifier than {path.parent}: {remedy}")

    def fits(tensor: Tensor, dtype: str, *axes: str) -> bool:
        return (
            str(tensor.dtype) == f"torch.{dtype}"
            and len(axes) == tensor.ndim
            and all(
                sizes.setdefault(axis, size) == size and (size > 0 or axis.islower())
                for axis, size in zip(axes, tensor.shape, strict=True)
            )
        )

    # further tensors are of earlier versions
    if not shapes.keys() <= tensors.keys() or not all(
        fits(tensors[name], *shape.split()) for name, shape in shapes.items()
    ):
        raise ArtifactError(f"{path} is damaged (its tensors are invalid): {remedy}")
    return {name: tensors[name] for name in shapes}, fields
