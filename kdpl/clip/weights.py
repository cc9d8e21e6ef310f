"""Weights of a CLIP, from a pretrained tag or a file, checked against the model before loading."""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import open_clip
from open_clip.constants import HF_SAFE_WEIGHTS_NAME
from open_clip.convert import convert_state_dict
from open_clip.factory import load_state_dict as read_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from safetensors import safe_open
from torch import Tensor, nn

from kdpl.clip.address import CONFIG_FILE, Source, read_config
from kdpl.clip.identity import ClipConfig
from kdpl.clip.torch_files import is_torchscript, read_openai_archive
from kdpl.errors import ArtifactError, ConfigError, WeightsError, reason
from kdpl.runtime.network import WITHOUT_NETWORK, hub_or_cache

StateDict = dict[str, Tensor]

_OPENAI = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "resize_mode": "shortest",
    "interpolation": "bicubic",
}


class Weights(NamedTuple):
    """Weights, their source, and how open_clip says that their training images were prepared."""

    state: StateDict
    source: str
    images: Mapping[str, Any] = _OPENAI


def read_weights(
    config: ClipConfig, quick_gelu: bool, registered_tags: list[str] | None
) -> Weights:
    """Read the weights that a config names, for a model with or without QuickGELU.

    A message about an unknown tag lists ``registered_tags``, or open_clip's own if that is None. A
    WeightsError if they cannot be loaded, or were trained with another activation; a ConfigError if
    the config contradicts the file.
    """
    if config.pretrained is None:
        raise ConfigError(
            f"{config.model} has several weights: set clip.pretrained to a tag or a weights file"
        )
    tag = open_clip.get_pretrained_cfg(config.model, config.pretrained)
    if not tag:
        tags = (
            open_clip.list_pretrained_tags_by_model(config.model)
            if registered_tags is None
            else registered_tags
        )
        return Weights(
            _read_own(config, quick_gelu, tags), config.pretrained, preprocessing_of_file(config)
        )
    try:
        with hub_or_cache() if tag.get("hf_hub") else nullcontext():
            path = Path(open_clip.download_pretrained(tag))
    except Exception as error:  # whatever the hub client, a proxy or the disk raises
        raise WeightsError(
            f"cannot fetch the weights {config.pretrained!r} of {config.model} ({reason(error)}): "
            f"where there is a network, fetch {_origin(tag)}; give the path of the weights as "
            f"clip.pretrained, and clip.quick_gelu {str(quick_gelu).lower()}{WITHOUT_NETWORK}"
        ) from error
    return Weights(
        read_state(path)[0], str(path), {key: tag.get(key, usual) for key, usual in _OPENAI.items()}
    )


def read_weights_of(source: Source, config: ClipConfig) -> Weights:
    """Read the weights at an address, or raise a WeightsError.

    It is a ConfigError if the config names others.
    """
    if config.pretrained not in (None, source.name):
        raise ConfigError(
            f"{source.name} has its own weights, not {config.pretrained!r}: remove clip.pretrained"
        )
    path = source.weights()
    return Weights(
        read_state(path)[0], str(path), preprocessing_of_file(replace(config, pretrained=str(path)))
    )


def _origin(tag: Mapping[str, Any]) -> str:
    """The files that a pretrained tag stands for, and where they are published."""
    repository, _, file = str(tag.get("hf_hub", "")).rpartition("/")
    if not repository:
        return str(tag.get("url"))
    files = file or f"{HF_SAFE_WEIGHTS_NAME} and open_clip_config.json"
    return f"{files} of https://huggingface.co/{repository}"


def load_weights(
    model: nn.Module, weights: Weights, name: str, prefixes: tuple[str, ...] = ("",)
) -> None:
    """Load weights that begin with one of ``prefixes`` into a CLIP, or raise a WeightsError.

    The model is an ``open_clip.CLIP``.
    """
    # of no use here: a mask that is built, positions that transformers builds, a sigmoid's bias, a
    # CoCa's decoder
    unused = (
        "attn_mask",
        "text.transformer.embeddings.position_ids",
        "logit_bias",
        "text_decoder.",
    )
    own = {
        k: v
        for k, v in model.state_dict().items()
        if k.startswith(prefixes) and not k.startswith(unused)
    }
    state = dict(weights.state)
    if hasattr(model, "text") and "positional_embedding" in state:
        state = convert_to_custom_text_state_dict(state)
    state = convert_state_dict(model, state)
    state = {k: v for k, v in state.items() if k.startswith(prefixes) and not k.startswith(unused)}
    # some files write the one number as a list of one
    if "logit_scale" in state and state["logit_scale"].numel() == 1:
        state["logit_scale"] = state["logit_scale"].reshape(own["logit_scale"].shape)
    # old checkpoints of batch norms do not count their batches, and nothing of ours asks for the
    # count
    own = {k: v for k, v in own.items() if k in state or not k.endswith("num_batches_tracked")}
    problem = mismatch(own, state)
    if problem is not None:
        raise WeightsError(
            f"{weights.source} does not hold the weights of {name} ({problem}): use the model it "
            "was made for"
        )
    model.load_state_dict(state, strict=False)


def mismatch(own: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> str | None:
    """Return the first differences between a module's tensors and others; None if they fit.

    Names are compared first, then shapes.
    """
    strange = {"missing": own.keys() - others.keys(), "unknown": others.keys() - own.keys()}
    differences = [
        f"tensor '{min(names)[:80]}' is {how}" for how, names in strange.items() if names
    ]
    if differences:
        return ", ".join(differences)
    for name in sorted(own):
        if own[name].shape != others[name].shape:
            return (
                f"tensor '{name}' has shape {tuple(others[name].shape)} "
                f"instead of {tuple(own[name].shape)}"
            )
    return None


def preprocessing_of_file(config: ClipConfig) -> Mapping[str, Any]:
    """Return mean, std and resizing of the images that a file's weights were trained on.

    The config, the JSON file beside the weights, or all tags of the model agree on them.
    """
    path = Path(str(config.pretrained))
    beside = path.with_name(CONFIG_FILE)
    known: list[Mapping[str, Any]] = [{}]
    if beside.is_file():
        known = [read_config(beside, "preprocess_cfg")]
    elif not is_torchscript(path):  # which only OpenAI's are
        known = [
            open_clip.get_pretrained_cfg(*pair)
            for pair in open_clip.list_pretrained()
            if pair[0] == config.model
        ]
    shown = {}
    for key, usual in _OPENAI.items():
        values = {json.dumps(each.get(key, usual)) for each in known or [{}]}
        given = getattr(config, key, None)
        if given is None and len(values) > 1:
            setting = f"set clip.{key}, or " if key in ClipConfig.__dataclass_fields__ else ""
            raise WeightsError(
                f"{path} does not say how its images were prepared, and pretrained weights of "
                f"{config.model} differ in "
                f"{key}: {setting}put the weights' own open_clip_config.json beside the file"
            )
        shown[key] = json.loads(values.pop()) if given is None else given
    return shown


def _read_own(config: ClipConfig, model_quick: bool, tags: list[str]) -> StateDict:
    """Read the weights file that a config names."""
    path = Path(str(config.pretrained))
    if not path.is_file():
        raise WeightsError(
            f"{config.model} has no weights called {config.pretrained!r}, nor does such a file "
            "exist: use one of "
            f"{', '.join(tags)}, or the path of a weights file (.safetensors, .pt, .pth, .bin)"
        )
    state, told = read_state(path)
    if told is None and config.quick_gelu is None:
        raise WeightsError(
            f"{path} does not say with which activation it was trained: set clip.quick_gelu to "
            "true (OpenAI, MetaCLIP, DFN) or false (LAION, DataComp)"
        )
    if told is not None and config.quick_gelu is not None and told != config.quick_gelu:
        raise ConfigError(
            f"clip.quick_gelu is {config.quick_gelu} but {path} says {told}: remove the setting"
        )
    quick = told if told is not None else bool(config.quick_gelu)
    if quick != model_quick:
        names = ("GELU", "QuickGELU")
        raise WeightsError(
            f"the weights {config.pretrained!r} were trained with {names[quick]} but "
            f"{config.model} has {names[model_quick]}: use model "
            f"{config.model.removesuffix('-quickgelu')}{'-quickgelu' * quick}"
        )
    return state


def read_state(path: Path) -> tuple[StateDict, bool | None]:
    """Return a file's tensors, and if they were trained with QuickGELU; None if it does not say."""
    stored = None
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                stored = (file.metadata() or {}).get("quick_gelu")
        elif is_torchscript(path):
            return read_openai_archive(path), True
        state = read_state_dict(str(path), weights_only=True)
        return {
            k: v for k, v in state.items() if isinstance(v, Tensor)
        }, None if stored is None else stored == "true"
    except ArtifactError as error:
        raise WeightsError(f"weights file {error}") from error
    except UnpicklingError as error:
        # torch's own message advises to load the file without this protection
        raise WeightsError(
            f"weights file {path} is damaged or holds more than tensors, which might run code and "
            "is not loaded: give CLIP weights as a state dict"
        ) from error
    except Exception as error:  # zip, json and torch each raise their own
        raise WeightsError(
            f"{path} cannot be read ({reason(error)}): give CLIP weights as a state dict"
        ) from error
