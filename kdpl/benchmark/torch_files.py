"""Safe reading of torch files that hold more than tensors: nothing that they name is run.

``torch.load(weights_only=True)`` builds plain values; a stand-in that does nothing replaces other
classes and functions.
"""

from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from kdpl.errors import ArtifactError, reason


class _StandIn:
    """Replaces any class or function of a file and its instances; takes all, does nothing."""

    __slots__ = ()

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _empty_dict(*_: object) -> dict[Any, Any]:
    return {}  # torch sets items on exact dicts alone


def read_torch_file(path: Path) -> Any:
    """Read a file of ``torch.save``, in the zip format of version 1.6 and later, onto the CPU.

    Returns:
        The saved tensors, numbers, strings and plain containers; a stand-in for anything else.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist: check the path")
    try:
        names = get_unsafe_globals_in_checkpoint(str(path))
        with safe_globals(
            [(_empty_dict if n == "collections.defaultdict" else _StandIn, n) for n in names]
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch raise many on damaged bytes
        # leave out torch's advice to load the file without this protection
        why = "" if "weights_only" in str(error) else f" ({reason(error)})"
        raise ArtifactError(
            f"{path} is damaged, or not a checkpoint as torch.save writes them since version "
            f"1.6{why}: fetch it again"
        ) from error
