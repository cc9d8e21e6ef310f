"""CLIPs by address: a folder, or a repository of the Hugging Face hub, in open_clip's layout."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from kdpl.errors import WeightsError, reason
from kdpl.runtime.network import WITHOUT_NETWORK, hub_or_cache

FOLDER, HUB = "local-dir:", "hf-hub:"
CONFIG_FILE = "open_clip_config.json"

_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)


@dataclass(frozen=True)
class Source:
    """Name and model config of a CLIP, and the folder that it lies in, if given by address."""

    name: str
    config: Mapping[str, Any]
    folder: Path | None = None

    @property
    def is_local(self) -> bool:
        """True if the folder was given as such, and holds the tokenizer's files as well."""
        return self.name.startswith(FOLDER)

    def weights(self) -> Path:
        """Find or fetch the weights of an address, or raise a WeightsError."""
        if self.is_local and self.folder is not None:
            files = [self.folder / name for name in _WEIGHTS if (self.folder / name).is_file()]
            if not files:
                raise WeightsError(
                    f"{self.folder} has no weights: expected one of {', '.join(_WEIGHTS)}"
                )
            return files[0]
        return _fetch(self.name, *_WEIGHTS)


def is_address(name: str) -> bool:
    """Return whether a model is given by address, and not by name."""
    return name.startswith((FOLDER, HUB))


def source_of(address: str) -> Source:
    """Read the model config at an address, or raise a WeightsError."""
    folder = Path(address.removeprefix(FOLDER)).expanduser()
    file = folder / CONFIG_FILE if address.startswith(FOLDER) else _fetch(address, CONFIG_FILE)
    if not file.is_file():
        raise WeightsError(
            f"{folder} is not a CLIP in open_clip's layout, because it has no "
            f"{CONFIG_FILE}: check it"
        )
    config = read_config(file, "model_cfg")
    if not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise WeightsError(
            f"model_cfg in {file} lacks embed_dim, vision_cfg or text_cfg: fetch the file again"
        )
    source = Source(address, config, file.parent)
    return replace(source, config=_with_text_model(config, folder)) if source.is_local else source


def _with_text_model(config: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Have open_clip read a Hugging Face text tower from the folder.

    This applies if the folder has the tower's ``config.json``.

    The name in the config is mostly one of the hub, which open_clip would ask for the same file.
    """
    text = config["text_cfg"]
    places = [folder / text["hf_model_name"], folder] if text.get("hf_model_name") else []
    inside = next((str(place) for place in places if (place / "config.json").is_file()), None)
    return config if inside is None else {**config, "text_cfg": {**text, "hf_model_name": inside}}


def read_config(file: Path, part: str) -> dict[str, Any]:
    """Read a part of an ``open_clip_config.json``, or raise a WeightsError."""
    try:
        return {**json.loads(file.read_text(encoding="utf-8"))[part]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{file} has no {part} ({reason(error)}): fetch it again") from error


def _fetch(address: str, *names: str) -> Path:
    """Fetch the first file of a repository that is there, from the hub or its cache."""
    *others, last = names
    try:
        with hub_or_cache():
            for name in others:
                with suppress(Exception):  # the next one may be there
                    return Path(hf_hub_download(address.removeprefix(HUB), name))
            return Path(hf_hub_download(address.removeprefix(HUB), last))
    except Exception as error:  # whatever the hub client, a proxy or the disk raises
        raise WeightsError(
            f"cannot fetch {' or '.join(names)} of {address} ({reason(error)}): fetch the "
            "repository where there is a "
            f"network, and give its folder as {FOLDER}PATH{WITHOUT_NETWORK}"
        ) from error
