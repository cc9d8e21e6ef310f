"""Weights of a CLIP, from a pretrained tag or a file, checked against the model before loading."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
from open_clip.constants import HF_SAFE_WEIGHTS_NAME
from open_clip.convert import convert_state_dict
from open_clip.factory import load_state_dict as read_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor, nn

from kdpl.clip.identity import ClipConfig
from kdpl.clip.modules import require_tensors
from kdpl.errors import ConfigError, WeightsError, reason

StateDict = dict[str, Tensor]

CONFIG_FILE = "open_clip_config.json"
"""File that open_clip writes next to weights: the model's config and preprocessing."""

_OPENAI = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "resize_mode": "shortest",
    "interpolation": "bicubic",
}

# unused: positions that transformers builds, a sigmoid's bias, a CoCa's decoder
_UNUSED = ("text.transformer.embeddings.position_ids", "logit_bias", "text_decoder.")


class Weights(NamedTuple):
    """Weights, their source, and the preprocessing of their training images, as in open_clip."""

    state: StateDict
    source: str
    images: Mapping[str, Any] = _OPENAI


def read_weights(config: ClipConfig, tags: list[str]) -> Weights:
    """Read the weights that a config names; a message about an unknown tag lists ``tags``."""
    if config.pretrained is None:
        raise ConfigError(
            f"{config.model} has several weights: set clip.pretrained to a tag or a weights file"
        )
    tag = open_clip.get_pretrained_cfg(config.model, config.pretrained)
    if tag:
        path = _fetch(config, tag)
        images = {key: tag.get(key, usual) for key, usual in _OPENAI.items()}
        return Weights(read_state(path), str(path), images)
    path = Path(config.pretrained)
    if not path.is_file():
        raise WeightsError(
            f"{config.model} has no weights called {config.pretrained!r}, nor does such a file "
            f"exist: use one of {', '.join(tags)}, or the path of a weights file (.safetensors, "
            ".pt, .pth, .bin)"
        )
    if config.quick_gelu is None:
        raise WeightsError(
            f"{path} does not say with which activation it was trained: set clip.quick_gelu to "
            "true (OpenAI, MetaCLIP, DFN) or false (LAION, DataComp)"
        )
    return Weights(read_state(path), str(path), preprocessing_of_file(config, path))


def _fetch(config: ClipConfig, tag: Mapping[str, Any]) -> Path:
    # a tag names a repository, possibly with a file, or a URL
    repository, _, file = str(tag.get("hf_hub", "")).rpartition("/")
    try:
        return Path(open_clip.download_pretrained(tag))
    except Exception as error:  # anything from the hub client, a proxy or the disk
        files = file or f"{HF_SAFE_WEIGHTS_NAME} and {CONFIG_FILE}"
        origin = f"{files} of https://huggingface.co/{repository}" if repository else tag["url"]
        raise WeightsError(
            f"cannot fetch the weights {config.pretrained!r} of {config.model} ({reason(error)}): "
            f"where there is a network, fetch {origin}; give the path of the weights as "
            f"clip.pretrained, and clip.quick_gelu {str(bool(tag.get('quick_gelu'))).lower()}"
            "; to try things out without, run with --teacher quickstart --student quickstart"
        ) from error


def preprocessing_of_file(config: ClipConfig, path: Path) -> Mapping[str, Any]:
    """Return mean, std and resizing of the images that a file's weights were trained on.

    They come from the JSON file next to the weights, or from the model's pretrained tags; a
    WeightsError if the tags differ in a value that the config does not set.
    """
    config_file = path.with_name(CONFIG_FILE)
    if config_file.is_file():
        candidates = [read_part(config_file, "preprocess_cfg")]
    else:
        pairs = [pair for pair in open_clip.list_pretrained() if pair[0] == config.model]
        candidates = [open_clip.get_pretrained_cfg(*pair) for pair in pairs]
    images = {}
    for key, usual in _OPENAI.items():
        images[key], *rest = [candidate.get(key, usual) for candidate in candidates] or [usual]
        is_set = getattr(config, key, None) is not None
        if not is_set and any(list(other) != list(images[key]) for other in rest):
            setting = f"set clip.{key}, or " if hasattr(config, key) else ""
            raise WeightsError(
                f"{path} does not say how its images were prepared, and pretrained weights of "
                f"{config.model} differ in {key}: {setting}put the weights' {CONFIG_FILE} "
                "beside the file"
            )
    return images


def read_part(file: Path, part: str) -> dict[str, Any]:
    """Read a part of an ``open_clip_config.json``, or raise a WeightsError."""
    try:
        return {**json.loads(file.read_text(encoding="utf-8"))[part]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{file} has no {part} ({reason(error)}): fetch it again") from error


def read_state(path: Path) -> StateDict:
    """Return a file's tensors, or raise a WeightsError; never runs code in the file."""
    try:
        state = read_state_dict(str(path), weights_only=True)
        return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    except Exception as error:  # zip, json, pickle and torch have different error types
        raise WeightsError(
            f"{path} cannot be read ({reason(error)}): give CLIP weights as a state dict of "
            "tensors alone"
        ) from error


def load_weights(
    model: nn.Module, weights: Weights, name: str, prefixes: tuple[str, ...] = ("",)
) -> None:
    """Load weights whose names begin with one of ``prefixes``, or raise a WeightsError."""
    state = dict(weights.state)
    if hasattr(model, "text") and "positional_embedding" in state:
        state = convert_to_custom_text_state_dict(state)
    expected, state = (
        {k: v for k, v in tensors.items() if k.startswith(prefixes) and not k.startswith(_UNUSED)}
        for tensors in (model.state_dict(), convert_state_dict(model, state))
    )
    # some files have the scalar as a list of one
    if "logit_scale" in state and state["logit_scale"].numel() == 1:
        state["logit_scale"] = state["logit_scale"].reshape(expected["logit_scale"].shape)
    require_weights(expected, state, weights.source, name)
    model.load_state_dict(state, strict=False)


def require_weights(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str, name: str
) -> None:
    """Raise a WeightsError unless the weights of a source fit a model's weights."""
    try:
        require_tensors(expected, state)
    except ValueError as error:
        raise WeightsError(
            f"{source} does not hold the weights of {name} ({error}): use the model it was made for"
        ) from error
