"""TorchScript archives, as OpenAI publishes its CLIPs: their code runs when they are loaded."""

import hashlib
import warnings
import zipfile
from pathlib import Path

import open_clip
from open_clip.factory import load_state_dict
from torch import Tensor

from kdpl.errors import ArtifactError


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive; False also for a damaged one."""
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.endswith("/constants.pkl") for name in file.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def read_openai_archive(path: Path) -> dict[str, Tensor]:
    """Load a TorchScript archive's state dict; an ArtifactError unless OpenAI published it.

    Loading an archive runs its code.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest not in openai_digests():
        raise ArtifactError(
            f"{path} is a TorchScript archive, whose code would run, and not one of OpenAI's: save "
            "its state_dict with safetensors, and give that file"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice to call torch.jit.load
        state: dict[str, Tensor] = load_state_dict(str(path), weights_only=False)
    return state


def openai_digests() -> set[str]:
    """Return the SHA-256 of OpenAI's published archives, from addresses in open_clip's table."""
    urls = [
        open_clip.get_pretrained_cfg(*pretrained).get("url", "")
        for pretrained in open_clip.list_pretrained()
    ]
    return {url.split("/")[-2] for url in urls if "/openaipublic." in url}
