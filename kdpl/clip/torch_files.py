"""Torch files that hold more than tensors, read without running anything that they name.

``torch.load(weights_only=True)`` builds plain values; other classes and functions become a stand-in that does nothing.
"""

import hashlib
import warnings
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_state_dict
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from kdpl.errors import ArtifactError, reason


class _StandIn:
    """Stands for any class or function of a file, and for its instances: takes everything, does nothing."""

    __slots__ = ()

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _empty_dict(*_: object) -> dict[Any, Any]:
    return {}  # torch sets items on exact dicts alone


def read_torch_file(path: Path) -> Any:
    """Read a file that ``torch.save`` has written, a zip archive as since version 1.6, on the CPU.

    Returns what was saved: tensors, numbers, strings and plain containers, and a meaningless object for anything else.
    An ArtifactError if the file is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist: check the path")
    if is_torchscript(path):
        raise ArtifactError(f"{path} is a TorchScript archive, expected a checkpoint: give the authors' own file")
    try:
        names = get_unsafe_globals_in_checkpoint(str(path))
        with safe_globals([(_empty_dict if n == "collections.defaultdict" else _StandIn, n) for n in names]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever zipfile, pickle and torch raise on damaged bytes
        # not torch's own words, which advise to load the file without this protection
        why = "" if "weights_only" in str(error) else f" ({reason(error)})"
        raise ArtifactError(
            f"{path} is damaged, or not a checkpoint as torch.save writes them since version 1.6{why}: fetch it again"
        ) from error


def is_torchscript(path: Path) -> bool:
    """If a file is a TorchScript archive, as OpenAI publishes its CLIPs; False also for a damaged one."""
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.endswith("/constants.pkl") for name in file.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def read_openai_archive(path: Path) -> dict[str, Tensor]:
    """Load the state dict of a TorchScript archive, whose code runs; an ArtifactError unless OpenAI published it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest not in openai_digests():
        raise ArtifactError(
            f"{path} is a TorchScript archive, whose code would run, and not one of OpenAI's: save its state_dict with "
            "safetensors, and give that file"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice to call torch.jit.load
        state: dict[str, Tensor] = load_state_dict(str(path), weights_only=False)
    return state


def openai_digests() -> set[str]:
    """SHA-256 of the archives that OpenAI published, as the addresses in open_clip's table have them."""
    urls = [open_clip.get_pretrained_cfg(*pretrained).get("url", "") for pretrained in open_clip.list_pretrained()]
    return {url.split("/")[-2] for url in urls if "/openaipublic." in url}
