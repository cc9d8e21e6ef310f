"""Reading and writing kdpl's own artifacts: safetensors with a JSON header, whole or not there at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdpl.errors import ArtifactError, reason
from kdpl.runtime.fields import describe
from kdpl.runtime.files import atomic_path

_KEY = "kdpl"

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""How metadata is validated: each field of exactly its type, and no other fields."""

T = TypeVar("T")


def write_tensors(
    path: Path, kind: str, version: int, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]
) -> None:
    """Write tensors and JSON fields as one safetensors file, atomically.

    Args:
        path: Where.
        kind: What the file is; a reader asks for it.
        version: Version of the format.
        tensors: The tensors, by name.
        fields: What else there is to say, as JSON values.
    """
    header = json.dumps({"kind": kind, "version": version, **fields}, ensure_ascii=False)
    with atomic_path(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata={_KEY: header})


def read_tensors(path: Path, kind: str, version: int, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``write_tensors`` wrote.

    Args:
        path: Where.
        kind: What the file must be.
        version: The version of the format that the caller understands.
        remedy: What a person is to do when the file is not there or damaged.

    Returns:
        The tensors, and the JSON fields without kind and version.

    Raises:
        ArtifactError: The file is missing, damaged, of another kind or of an unknown version.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist, where {kind} were expected: {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            fields = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:  # safetensors has one error type for all damage, json another
        raise ArtifactError(f"{path} is damaged ({reason(error)}): {remedy}") from error
    if not isinstance(fields, dict) or fields.get("kind") != kind:
        raise ArtifactError(f"{path} does not hold {kind}: {remedy}")
    if type(fields.get("version")) is not int or fields["version"] != version:
        raise ArtifactError(
            f"{path} has format version {describe(fields.get('version'))}, this kdpl reads version {version}: "
            "use the kdpl it was written with, or make it again"
        )
    return tensors, {name: value for name, value in fields.items() if name not in ("kind", "version")}


def parse_metadata(kind: type[T], fields: Mapping[str, Any], source: str, remedy: str) -> T:
    """Validate JSON fields as a pydantic dataclass.

    Args:
        kind: The dataclass.
        fields: The fields; what JSON has as a list may be a tuple.
        source: Where they come from, for the message.
        remedy: What to do when they are invalid, for the message.

    Raises:
        ArtifactError: A field is missing, unknown or invalid; the first one is named.
    """
    try:
        # as JSON, for there strict types may be read from lists and objects
        return TypeAdapter(kind).validate_json(json.dumps(fields, default=lambda value: type(value).__name__))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        what = reason(ValueError(first["msg"].removeprefix("Value error, ")))
        raise ArtifactError(f"{source} has an invalid field '{where}' ({what}): {remedy}") from error
