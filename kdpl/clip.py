"""open_clip behind one door: find a CLIP, check that it can be prompted, freeze it, take it apart.

Models come from open_clip's own list, or from the registry here, which other packages extend
through the entry point group ``kdpl.models``. Weights come from a pretrained tag or from a file.
"""

import difflib
import hashlib
import math
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.factory import load_state_dict as read_state_dict
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from safetensors import safe_open
from torch import Tensor, nn

from kdpl.clip_identity import ClipIdentity, Preprocessing
from kdpl.errors import ConfigError, WeightsError, reason
from kdpl.towers import ImageTower, TextTower

StateDict = dict[str, Tensor]

RANDOM = "random"
"""The pretrained tag that stands for random weights, the same ones every time."""

# METHOD: PromptSRC's text regulariser averages over the first 60 of the 80 published templates
PROMPTSRC_TEMPLATES: tuple[Callable[[str], str], ...] = tuple(OPENAI_IMAGENET_TEMPLATES[:60])

IMAGENET_CLASS_NAMES: tuple[str, ...] = tuple(IMAGENET_CLASSNAMES)
"""The names that OpenAI gave ImageNet's 1,000 classes, by label; two names stand twice."""

_WEIGHT_SUFFIXES = {".safetensors", ".pt", ".pth", ".bin"}


@dataclass(frozen=True)
class ClipConfig:
    """Which CLIP, with which weights.

    Attributes:
        model: Name of a model of open_clip or of the registry, for example ``ViT-L-14-quickgelu``.
        pretrained: A pretrained tag (``openai``), a weights file (.safetensors, .pt, .pth, .bin), or ``random``.
        quick_gelu: Needed for a weights file that does not itself say with which activation it was
            trained: true for QuickGELU (OpenAI, MetaCLIP, DFN), false for GELU (LAION, DataComp).
    """

    model: str
    pretrained: str
    quick_gelu: bool | None = None


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP, taken apart.

    Attributes:
        image_tower: The vision transformer.
        text_tower: The text transformer.
        tokenize: Texts to token ids [N, context_length].
        logit_scale: The factor on cosine similarities, already exponentiated (100 for OpenAI's weights).
        identity: Name, source and fingerprint.
        preprocessing: Size and normalisation of its images.
    """

    image_tower: ImageTower
    text_tower: TextTower
    tokenize: Callable[[list[str]], Tensor]
    logit_scale: float
    identity: ClipIdentity
    preprocessing: Preprocessing


class _Registered(NamedTuple):
    config: Mapping[str, Any]
    weights: Mapping[str, Callable[[], StateDict]]


_REGISTRY: dict[str, _Registered] = {}


def register_model(name: str, config: Mapping[str, Any], weights: Mapping[str, Callable[[], StateDict]]) -> None:
    """Make a CLIP known by name.

    Args:
        name: The name that configs use.
        config: Model config in open_clip's form: ``embed_dim``, ``vision_cfg``, ``text_cfg`` and, where
            true, ``quick_gelu``.
        weights: For each pretrained tag a function that returns the whole float32 state dict of the ``open_clip.CLIP``.
    """
    _REGISTRY[name] = _Registered(config, weights)


def _registered(name: str) -> _Registered | None:
    for entry in entry_points(group="kdpl.models"):
        entry.load()()
    return _REGISTRY.get(name)


def load_clip(config: ClipConfig) -> Clip:
    """Load a CLIP in float32 on the CPU, frozen, in evaluation mode.

    Args:
        config: Which model and which weights.

    Raises:
        WeightsError: The model or its weights cannot be had, are of a kind that cannot be prompted, or
            were trained with another activation than the model has.
    """
    registered = _registered(config.model)
    model_config = dict(registered.config) if registered else _open_clip_config(config.model)
    _require_supported(config.model, model_config)
    model = _build(model_config)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    if config.pretrained == RANDOM:
        warnings.warn(f"{config.model} has random weights (pretrained: {RANDOM}): good for tests alone", stacklevel=2)
    elif registered and config.pretrained in registered.weights:
        model.load_state_dict(registered.weights[config.pretrained]())
    elif tag := open_clip.get_pretrained_cfg(config.model, config.pretrained):
        _require_activation(config, bool(tag.get("quick_gelu", False)), bool(model_config.get("quick_gelu", False)))
        _load_tag(model, config, tag)
        mean, std = tag.get("mean", mean), tag.get("std", std)
        _require_resize(config, tag)
    else:
        tags = sorted(registered.weights) if registered else open_clip.list_pretrained_tags_by_model(config.model)
        _load_file(model, config, model_config, tags)
    return _take_apart(model, config, Preprocessing(model.visual.image_size[0], tuple(mean), tuple(std)))


def build_image_tower(model_config: Mapping[str, Any], preprocessing: Preprocessing) -> ImageTower:
    """Build the image tower alone, with weights still to be loaded, from a model config in open_clip's form."""
    text = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}
    return ImageTower(_build({**model_config, "text_cfg": text}).visual, preprocessing)


def image_config(name: str) -> dict[str, Any]:
    """Give the part of a model's config that its image tower is built from."""
    registered = _registered(name)
    config = registered.config if registered else _open_clip_config(name)
    return {key: config[key] for key in ("embed_dim", "vision_cfg", "quick_gelu") if key in config}


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Digest names, shapes and values of tensors; 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def _build(model_config: Mapping[str, Any]) -> Any:  # noqa: ANN401
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_clip.CLIP(**{key: value for key, value in model_config.items() if key != "custom_text"})


def _take_apart(model: Any, config: ClipConfig, preprocessing: Preprocessing) -> Clip:  # noqa: ANN401
    image_tower = ImageTower(model.visual, preprocessing)
    identity = ClipIdentity(
        model=config.model,
        pretrained=config.pretrained,
        quick_gelu=any(isinstance(m, open_clip.transformer.QuickGELU) for m in model.modules()),
        fingerprint=fingerprint(model.visual.state_dict().items()),
    )
    return Clip(
        image_tower=image_tower,
        text_tower=TextTower(model),
        tokenize=open_clip.SimpleTokenizer(context_length=model.context_length),
        logit_scale=math.exp(model.logit_scale.item()),
        identity=identity,
        preprocessing=preprocessing,
    )


def _open_clip_config(name: str) -> dict[str, Any]:
    known = [*_REGISTRY, *open_clip.list_models()]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or known[:3]
        raise WeightsError(f"no CLIP model is called {name!r}: use a name of open_clip, such as {', '.join(close)}")
    config: dict[str, Any] = open_clip.get_model_config(name)
    return config


def _require_supported(name: str, config: Mapping[str, Any]) -> None:
    vision, text = config["vision_cfg"], config["text_cfg"]
    reasons = {
        "its image tower is a timm model": "timm_model_name" in vision,
        "its image tower is a ResNet": isinstance(vision.get("layers"), list | tuple),
        "its image tower pools by attention": bool(vision.get("attentional_pool")),
        "its image tower does not pool by the class token": vision.get("pool_type", "tok") != "tok",
        "its image tower is not square": isinstance(vision.get("image_size", 224), list | tuple),
        "its text tower is a Hugging Face model": bool(text.get("hf_model_name")),
        "its tokenizer is not CLIP's": bool(text.get("hf_tokenizer_name")),
        "it is a CoCa": "multimodal_cfg" in config,
        "its text tower is a separate module": bool(config.get("custom_text")),
        "its text tower has no causal mask": bool(text.get("no_causal_mask")),
        "its text tower does not pool at the end of text": bool(text.get("embed_cls"))
        or text.get("pool_type", "argmax") != "argmax",
        "its text projection is not a matrix": text.get("proj_type", "linear") != "linear"
        or bool(text.get("proj_bias")),
    }
    for why, applies in reasons.items():
        if applies:
            raise WeightsError(
                f"{name} cannot be prompted, because {why}: use a CLIP of OpenAI's kind, such as ViT-B-16 or ViT-L-14"
            )


def _require_activation(config: ClipConfig, weights_quick: bool, model_quick: bool) -> None:
    if weights_quick == model_quick:
        return
    plain = config.model.removesuffix("-quickgelu")
    right = f"{plain}-quickgelu" if weights_quick else plain
    names = ("GELU", "QuickGELU")
    raise WeightsError(
        f"the weights {config.pretrained!r} were trained with {names[weights_quick]} but {config.model} has "
        f"{names[model_quick]}: use model {right}"
    )


def _require_resize(config: ClipConfig, tag: Mapping[str, Any]) -> None:
    if tag.get("interpolation", "bicubic") != "bicubic" or tag.get("resize_mode", "shortest") != "shortest":
        raise WeightsError(
            f"{config.model} with {config.pretrained!r} wants images resized in another way than bicubic by the short "
            "edge, which kdpl does not do: use other weights"
        )


def _load_tag(model: nn.Module, config: ClipConfig, tag: Mapping[str, Any]) -> None:
    try:
        path = open_clip.download_pretrained(tag)
    except Exception as error:  # whatever the hub client, a proxy or the disk raises
        raise WeightsError(
            f"cannot fetch the weights {config.pretrained!r} of {config.model} ({reason(error)}): fetch them where "
            "there is a network and give the file's path as pretrained"
        ) from error
    _load_state(model, config, Path(path))


def _load_file(model: nn.Module, config: ClipConfig, model_config: Mapping[str, Any], tags: list[str]) -> None:
    path = Path(config.pretrained)
    if not path.is_file():
        if path.suffix in _WEIGHT_SUFFIXES:
            raise WeightsError(f"weights file {path} does not exist: check the path given as pretrained")
        raise WeightsError(
            f"{config.model} has no weights called {config.pretrained!r}: use one of "
            f"{', '.join(tags) or 'none (no tags are known)'}, or the path of a weights file"
        )
    if path.suffix not in _WEIGHT_SUFFIXES:
        raise WeightsError(f"weights file {path} is of an unknown kind: use {', '.join(sorted(_WEIGHT_SUFFIXES))}")
    told = _activation_in(path)
    if told is None and config.quick_gelu is None:
        raise WeightsError(
            f"{path} does not say with which activation it was trained: set clip.quick_gelu to true "
            "(OpenAI, MetaCLIP, DFN) or false (LAION, DataComp)"
        )
    if told is not None and config.quick_gelu is not None and told != config.quick_gelu:
        raise ConfigError(f"clip.quick_gelu is {config.quick_gelu} but {path} says {told}: remove the setting")
    quick = told if told is not None else bool(config.quick_gelu)
    _require_activation(config, quick, bool(model_config.get("quick_gelu", False)))
    _load_state(model, config, path)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _activation_in(path: Path) -> bool | None:
    """Whether the file says that its weights want QuickGELU; None if it does not say."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                said = (file.metadata() or {}).get("quick_gelu")
        except Exception as error:
            raise WeightsError(f"weights file {path} is damaged ({reason(error)}): fetch it again") from error
        return None if said is None else said == "true"
    # the only TorchScript archives of CLIPs are OpenAI's
    return True if _is_torchscript(path) else None


def _read_tensors(path: Path) -> StateDict:
    try:
        if path.suffix != ".safetensors" and _is_torchscript(path):
            state = torch.jit.load(str(path), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
            sizes = {"input_resolution", "context_length", "vocab_size"}
        else:
            state, sizes = read_state_dict(str(path), weights_only=True), set()
        return {k: v for k, v in state.items() if isinstance(v, Tensor) and k not in sizes}
    except UnpicklingError as error:
        # torch's own message advises to load the file without this protection
        raise WeightsError(
            f"weights file {path} is damaged or holds more than tensors, which might run code and is not loaded: "
            "give CLIP weights as a state dict"
        ) from error
    except Exception as error:  # zip, json and torch each raise their own
        raise WeightsError(
            f"weights file {path} cannot be read ({reason(error)}): give CLIP weights as a state dict"
        ) from error


def _load_state(model: nn.Module, config: ClipConfig, path: Path) -> None:
    state, own = _read_tensors(path), model.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys() - {"attn_mask"})
    wrong = [k for k in sorted(own.keys() & state.keys()) if own[k].shape != state[k].shape]
    if missing or unknown or wrong:
        first = (
            f"{missing[0]} is missing"
            if missing
            else f"{unknown[0]} is unknown"
            if unknown
            else f"{wrong[0]} has shape {tuple(state[wrong[0]].shape)} instead of {tuple(own[wrong[0]].shape)}"
        )
        raise WeightsError(
            f"{path} does not hold the weights of {config.model} ({first}): use the model it was made for"
        )
    model.load_state_dict({k: v for k, v in state.items() if k in own})
