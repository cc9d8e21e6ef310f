"""Files that are kept beside a classifier, and name it by its fingerprint."""

from pathlib import Path
from typing import Annotated, TypeVar

import pydantic.dataclasses
from pydantic import Field
from torch import Tensor

from kdpl.errors import ArtifactError
from kdpl.runtime.artifacts import STRICT, parse_metadata, read_tensors


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class OfClassifier:
    """The fields of a file that is kept beside a classifier: its fingerprint."""

    classifier: Annotated[str, Field(pattern="^[0-9a-f]+$", max_length=200)]


C = TypeVar("C", bound=OfClassifier)


def read_of_classifier(
    path: Path, kind: str, version: int, fields_of: type[C], classifier: str, remedy: str
) -> tuple[dict[str, Tensor], C]:
    """Read the tensors and fields of a file that is kept beside a classifier.

    It is an ArtifactError if the file is damaged, or of another classifier than this fingerprint's.
    """
    tensors, read = read_tensors(path, kind, version, remedy)
    fields = parse_metadata(fields_of, read, str(path), remedy)
    if fields.classifier != classifier:
        raise ArtifactError(f"{path} is of another classifier than {path.parent}: {remedy}")
    return tensors, fields
