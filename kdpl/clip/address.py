"""CLIPs by address: a folder, or a repository of the Hugging Face hub, in open_clip's layout."""

import json
from pathlib import Path
from typing import Any

from open_clip.pretrained import download_pretrained_from_hf

from kdpl.errors import WeightsError, reason
from kdpl.runtime.network import WITHOUT_NETWORK, hub_or_cache

ADDRESSES = FOLDER, HUB = "local-dir:", "hf-hub:"
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)


def find_file(address: str, *names: str) -> Path:
    """Find the first of these files that an address has, or raise a WeightsError.

    A file on the hub is fetched, unless it is in the hub's cache.
    """
    wanted = " or ".join(names)
    if address.startswith(FOLDER):
        folder = Path(address.removeprefix(FOLDER)).expanduser()
        for name in names:
            if (folder / name).is_file():
                return folder / name
        raise WeightsError(
            f"{folder} is not a CLIP in open_clip's layout, because it has no {wanted}: check it"
        )
    try:
        with hub_or_cache():
            # open_clip looks for a safetensors file of this name before
            return Path(download_pretrained_from_hf(address.removeprefix(HUB), names[-1]))
    except Exception as error:  # whatever the hub client, a proxy or the disk raises
        raise WeightsError(
            f"cannot fetch {wanted} of {address} ({reason(error)}): fetch the repository where "
            f"there is a network, and give its folder as {FOLDER}PATH{WITHOUT_NETWORK}"
        ) from error


def read_model_config(address: str) -> dict[str, Any]:
    """Read the model config at an address, or raise a WeightsError.

    In a folder, open_clip is to read tokenizer and text tower of Hugging Face from there: the
    config mostly names a repository of the hub, which open_clip would ask for the same files.
    """
    file = find_file(address, CONFIG_FILE)
    config = read_part(file, "model_cfg")
    text = {**config.get("text_cfg", {})}
    if address.startswith(FOLDER):
        if "hf_tokenizer_name" in text:
            text["hf_tokenizer_name"] = str(file.parent)
        if "hf_model_name" in text and file.with_name("config.json").is_file():
            text["hf_model_name"] = str(file.parent)
    return {**config, "text_cfg": text}


def read_part(file: Path, part: str) -> dict[str, Any]:
    """Read a part of an ``open_clip_config.json``, or raise a WeightsError."""
    try:
        return {**json.loads(file.read_text(encoding="utf-8"))[part]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{file} has no {part} ({reason(error)}): fetch it again") from error
