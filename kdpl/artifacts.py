"""Reading and writing kdpl's own artifacts: safetensors with a JSON header, whole or not there at all."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdpl.errors import ArtifactError, reason

_KEY = "kdpl"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write a file or folder to; it takes the name only once it is whole.

    An existing file or folder of that name is replaced. When the block raises, nothing stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a folder of its own, so that the temporary thing may be a file or a folder
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        temporary = Path(scratch) / path.name
        yield temporary
        # safetensors 0.8 makes files that their owner alone may read: give them the mode of any other new file
        example = Path(scratch) / "example"
        example.touch()
        for written in (temporary, *temporary.rglob("*")):
            if written.is_file():
                written.chmod(example.stat().st_mode)
        if path.is_dir():
            path.rename(Path(scratch) / "replaced")
        temporary.replace(path)


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
        The tensors and the JSON fields.

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
    if fields.get("version") != version:
        raise ArtifactError(
            f"{path} has format version {fields.get('version')}, this kdpl reads version {version}: "
            "use the kdpl it was written with, or make it again"
        )
    return tensors, fields


def remove_path(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
