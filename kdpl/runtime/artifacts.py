"""Reading and writing kdpl's artifacts: safetensors with JSON metadata, written atomically."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

import pydantic.dataclasses
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from kdpl.errors import ArtifactError, reason, visible
from kdpl.runtime.files import atomic_path

_KEY = "kdpl"

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
"""Validation of metadata: fields of exactly the declared types, and no other fields."""

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def metadata(kind: type[T]) -> type[T]:
    """Make a class an immutable dataclass of keyword arguments, which are validated strictly."""
    make = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
    return cast(type[T], make(kind))


def _shown(text: str) -> str:
    lines = text.translate(dict.fromkeys(map(ord, "\n\r\t"), " "))
    if visible(lines) != lines:
        raise ValueError("the text has characters that cannot be shown")
    return text


Text = Annotated[str, Field(max_length=10_000), AfterValidator(_shown)]
"""Text in metadata that can be shown and encoded, possibly with several lines."""


def write_tensors(
    path: Path, kind: str, version: int, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]
) -> None:
    """Write tensors and JSON fields atomically as a safetensors file of a kind and version."""
    header = json.dumps({"kind": kind, "version": version, **fields}, ensure_ascii=False)
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        # not save_file: its error for a full disk has no errno
        temporary.write_bytes(save(stored, metadata={_KEY: header}))


def read_tensors(
    path: Path, kind: str, version: int, remedy: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and fields of a file written by ``write_tensors``."""
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist, where {kind} were expected: {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            fields = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:  # safetensors has one error type for all damage, json another
        raise ArtifactError(f"{path} is damaged ({reason(error)}): {remedy}") from error
    if not isinstance(fields, dict) or fields.pop("kind", None) != kind:
        raise ArtifactError(f"{path} does not hold {kind}: {remedy}")
    stored = fields.pop("version", None)
    if type(stored) is not int or stored != version:
        raise ArtifactError(
            f"{path} has format version {visible(str(stored))[:40]}, this kdpl reads {version}: "
            "use the kdpl it was written with, or make it again"
        )
    return tensors, fields


def parse_metadata(kind: type[T], fields: Mapping[str, Any], source: str, remedy: str) -> T:
    """Validate JSON fields, or raise an ArtifactError that names the first invalid one."""
    try:
        # as JSON: strict mode then reads tuples from lists, and dataclasses from objects
        return TypeAdapter(kind).validate_json(
            json.dumps(fields, default=lambda value: type(value).__name__)
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        what = reason(ValueError(first["msg"].removeprefix("Value error, ")))
        raise ArtifactError(
            f"{source} has an invalid field '{where}' ({what}): {remedy}"
        ) from error
