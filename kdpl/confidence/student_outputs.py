"""A finished student's outputs, from which the companions of its classifier are made."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import Field
from torch import Tensor

from kdpl.class_vectors import ClassVectors
from kdpl.classifier.companion import Companion
from kdpl.errors import ArtifactError
from kdpl.runtime.artifacts import metadata, parse_metadata, read_tensors, write_tensors
from kdpl.tasks import Predicted

VERSION = 1
"""Version of the files of companions."""


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
        pool: Predictions for a sample of the unlabelled images that no filter left out.
    """

    folder: Path
    vectors: ClassVectors
    logit_scale: float
    validation: ValidationOutputs | None
    pool: list[Predicted]


@metadata
class OfClassifier:
    """The fields of a companion's file: the fingerprint of its classifier."""

    classifier: Annotated[str, Field(pattern="^[0-9a-f]+$", max_length=200)]


class LearnedCompanion(Companion):
    """A companion that is made when its student is finished, in a file of tensors and fields.

    Attributes:
        kind: What the file holds.
        remedy: What to do about a damaged file.
        shapes: Type and axes of each tensor, as in ``float32 N D``. Axes of one name have one size,
            D that of the class vectors; only one in lower case may be empty.
        fields: Dataclass of the fields.
    """

    kind: ClassVar[str]
    remedy: ClassVar[str]
    shapes: ClassVar[Mapping[str, str]]
    fields: ClassVar[type[OfClassifier]] = OfClassifier

    @classmethod
    @abstractmethod
    def made_from(cls, outputs: StudentOutputs) -> Self | None:
        """Make the companion from a finished student's outputs; None if they do not suffice."""

    def contents(self) -> dict[str, Any]:
        """Return tensors and fields by name, by default the attributes of these names."""
        names = [*self.shapes, *(field.name for field in fields(self.fields))]
        return {name: getattr(self, name) for name in names if name != "classifier"}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], fields: dict[str, Any]) -> Self:
        """Make the companion of its tensors and fields; a ValueError if they do not fit."""
        return cls(**tensors, **fields)

    def save(self, folder: Path, classifier: str) -> None:
        """Write its file, atomically, with the fingerprint of the classifier."""
        contents = self.contents()
        tensors = {name: contents.pop(name) for name in self.shapes}
        values = {**contents, "classifier": classifier}
        write_tensors(folder / self.file, self.kind, VERSION, tensors, values)

    @classmethod
    def read(cls, folder: Path, classifier: str, width: int = 0) -> Self:
        """Read the file for a fingerprint and width D; an ArtifactError if it does not fit."""
        path, sizes = folder / cls.file, {"D": width}
        tensors, read = read_tensors(path, cls.kind, VERSION, cls.remedy)
        values = dict(vars(parse_metadata(cls.fields, read, str(path), cls.remedy)))
        if values.pop("classifier") != classifier:
            raise ArtifactError(f"{path} belongs to another classifier than {folder}: {cls.remedy}")

        def fits(tensor: Tensor, dtype: str, *axes: str) -> bool:
            return (
                str(tensor.dtype) == f"torch.{dtype}"
                and len(axes) == tensor.ndim
                and all(
                    sizes.setdefault(axis, size) == size and (size > 0 or axis.islower())
                    for axis, size in zip(axes, tensor.shape, strict=True)
                )
            )

        try:
            # further tensors are of earlier versions
            if not cls.shapes.keys() <= tensors.keys() or not all(
                fits(tensors[name], *shape.split()) for name, shape in cls.shapes.items()
            ):
                raise ValueError("its tensors are invalid")
            return cls.restore({name: tensors[name] for name in cls.shapes}, values)
        except ValueError as error:
            raise ArtifactError(f"{path} is damaged ({error}): {cls.remedy}") from error
