"""CLIPs in open_clip's layout: ``hf-hub:OWNER/NAME`` on the hub, ``local-dir:PATH``."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from kdpl.clip.identity import ClipConfig
from kdpl.clip.weights import CONFIG_FILE, Weights, preprocessing_of_file, read_part, read_state
from kdpl.errors import ConfigError, WeightsError, reason

FOLDER = "local-dir"
WEIGHTS_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)


def read_weights(config: ClipConfig) -> Weights:
    """Read the weights at an address; a ConfigError if the config names others."""
    if config.pretrained not in (None, config.model):
        raise ConfigError(
            f"{config.model} has its own weights, not {config.pretrained!r}: remove clip.pretrained"
        )
    path = find_file(config.model, *WEIGHTS_FILES)
    return Weights(read_state(path), str(path), preprocessing_of_file(config, path))


def read_model_config(address: str) -> dict[str, Any]:
    """Read the model config at an address, or raise a WeightsError.

    For a folder, open_clip reads tokenizer and text tower of Hugging Face from it. The config
    mostly names a repository on the hub, and open_clip would fetch the same files from there.
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


def find_file(address: str, *names: str) -> Path:
    """Find the first of these files at an address, or raise a WeightsError."""
    wanted = " or ".join(names)
    scheme, _, source = address.partition(":")
    if scheme == FOLDER:
        folder = Path(source).expanduser()
        for name in names:
            if (folder / name).is_file():
                return folder / name
        problem = f"has no {wanted}" if folder.is_dir() else "does not exist"
        raise WeightsError(
            f"{folder} is not a CLIP in open_clip's layout, because it {problem}: check it"
        )
    # a repository on the hub: the error is about the last name
    try:
        for name in names[:-1]:
            with suppress(EntryNotFoundError):
                return Path(hf_hub_download(source, name))
        return Path(hf_hub_download(source, names[-1]))
    except Exception as error:  # anything from the hub client, a proxy or the disk
        raise WeightsError(
            f"cannot fetch {wanted} of {address} ({reason(error)}): fetch the repository where "
            f"there is a network, and give its folder as {FOLDER}:PATH"
        ) from error
