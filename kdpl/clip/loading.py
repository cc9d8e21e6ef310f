"""Finding a CLIP, loading its weights, and taking it apart into frozen towers.

Models come from open_clip's list, from a folder or a repository of the Hugging Face hub in
open_clip's layout, or from the registry, which packages extend by the entry point group
``kdpl.models``.
"""

import difflib
import hashlib
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

from kdpl.clip.address import FOLDER, Source, is_address, source_of
from kdpl.clip.families import (
    DEFAULT_IMAGE_SIZE,
    ModelConfig,
    image_tower,
    require_image_tower,
    text_tower,
)
from kdpl.clip.identity import RANDOM, ClipConfig, ClipIdentity, Preprocessing
from kdpl.clip.image import ImageTower
from kdpl.clip.text import TextTower
from kdpl.clip.timm_model import TIMM, TimmTower, build_network, load_network
from kdpl.clip.tokens import Tokenizer
from kdpl.clip.weights import StateDict, Weights, load_weights, read_weights, read_weights_of
from kdpl.errors import ConfigError, WeightsError, reason
from kdpl.runtime.network import hub_or_cache
from kdpl.runtime.resizing import Interpolation

# METHOD: PromptSRC's text regulariser averages over the first 60 of the 80 published templates
PROMPTSRC_TEMPLATES: tuple[Callable[[str], str], ...] = tuple(OPENAI_IMAGENET_TEMPLATES[:60])

# the smallest text tower that open_clip builds, where the image tower alone is wanted
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}
_MODEL_OPTIONS = (
    "embed_dim",
    "quick_gelu",
    "init_logit_scale",
    "init_logit_bias",
    "nonscalar_logit_scale",
)


@dataclass(frozen=True)
class ImageClip:
    """The image half of a frozen CLIP, or a network of timm: all that stage 2 needs."""

    image_tower: ImageTower
    # factor of cosine similarities, already exponentiated, 100 for OpenAI's weights; None for a
    # network of timm
    logit_scale: float | None
    identity: ClipIdentity
    preprocessing: Preprocessing


@dataclass(frozen=True)
class Clip(ImageClip):
    """A frozen CLIP, taken apart; ``tokenize`` makes token ids [N, context_length] of texts."""

    logit_scale: float
    text_tower: TextTower
    tokenize: Tokenizer
    text_fingerprint: str


_REGISTRY: dict[str, tuple[ModelConfig, Mapping[str, Callable[[], StateDict]]]] = {}


def register_model(
    name: str, config: ModelConfig, weights: Mapping[str, Callable[[], StateDict]]
) -> None:
    """Make a CLIP known to configs by name; its config is a ``kdpl.clip.families.ModelConfig``.

    ``weights`` are functions by pretrained tag that return the whole float32 state dict of the
    ``open_clip.CLIP``.
    """
    _REGISTRY[name] = config, weights


def _load_registrations() -> None:
    for entry in entry_points(group="kdpl.models"):
        entry.load()()


def known_models() -> dict[str, tuple[ModelConfig, list[str]]]:
    """Return the model config and pretrained tags of each CLIP that has weights, by name.

    They come from the registry and from open_clip.
    """
    _load_registrations()
    registered = {name: (config, list(weights)) for name, (config, weights) in _REGISTRY.items()}
    tagged = dict.fromkeys(name for name, _ in open_clip.list_pretrained())
    tags_of = open_clip.list_pretrained_tags_by_model
    models = {name: (open_clip.get_model_config(name), tags_of(name)) for name in tagged}
    return {**models, **registered}


def count_image_parameters(config: ModelConfig) -> int:
    """Count the parameters of a model's image tower without allocating them."""
    with torch.device("meta"):
        return sum(
            each.numel() for each in _build({**config, "text_cfg": _NO_TEXT}).visual.parameters()
        )


def load_clip(config: ClipConfig) -> Clip:
    """Load a CLIP in float32 on the CPU, frozen, in evaluation mode.

    Raises:
        WeightsError: Model, tokenizer or weights cannot be loaded, or do not fit each other.
    """
    source = _source(config)
    tokenize = _tokenizer(source)  # before anything large is built or fetched
    hugging_face = source.config["text_cfg"].get("hf_model_name")
    with _transformers(source, "text tower", hugging_face) if hugging_face else nullcontext():
        model = _build(source.config)
    image = _image_half(model, config, source, ("",))
    tower = text_tower(source.name, model, tokenize.start)
    digest = fingerprint(tower.state_dict().items())
    return Clip(**vars(image), text_tower=tower, tokenize=tokenize, text_fingerprint=digest)


def load_image_clip(config: ClipConfig) -> ImageClip:
    """Load the image half of a CLIP, with the errors of ``load_clip``, or a network of timm."""
    if config.model.startswith(TIMM):
        network = load_network(config)
        digest = fingerprint(network.visual.state_dict().items())
        identity = ClipIdentity(config.model, config.pretrained or config.model, False, digest)
        return ImageClip(network, None, identity, network.preprocessing)
    source = _source(config)
    model = _build({**source.config, "text_cfg": _NO_TEXT})
    return _image_half(model, config, source, ("visual.", "logit_scale"))


def build_image_tower(model_config: ModelConfig, preprocessing: Preprocessing) -> ImageTower:
    """Build an image tower from an open_clip model config, with weights still to be loaded."""
    name = model_config["vision_cfg"].get("timm")
    if name is not None:
        return TimmTower(build_network(name, preprocessing.image_size), preprocessing, model_config)
    return image_tower(
        _build({**model_config, "text_cfg": _NO_TEXT}).visual, model_config, preprocessing
    )


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Digest of names, shapes and values of tensors; 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def _source(config: ClipConfig) -> Source:
    name = config.model
    if config.image_size is not None and not name.startswith(TIMM):
        raise ConfigError(
            f"{name} is a CLIP, which takes images of its own size: remove clip.image_size"
        )
    _load_registrations()
    if name in _REGISTRY:
        source = Source(name, _REGISTRY[name][0])
    elif name.startswith(TIMM):
        raise WeightsError(
            f"{name} is no CLIP and cannot read class names: use it as a student, "
            "and a CLIP as teacher"
        )
    elif is_address(name):
        source = source_of(name)
    elif name in open_clip.list_models():
        tag = open_clip.get_pretrained_cfg(name, config.pretrained or "")
        # the activation that the weights were trained with, of which the model's name need not say
        # anything
        activation = {"quick_gelu": True} if tag.get("quick_gelu") else {}
        source = Source(name, {**open_clip.get_model_config(name), **activation})
    else:
        known = [*_REGISTRY, *open_clip.list_models()]
        close = difflib.get_close_matches(name, known, n=3) or known[:3]
        raise WeightsError(
            f"no CLIP model is called {name!r}: use a name of open_clip, such as "
            f"{', '.join(close)}, or the address of "
            f"one in open_clip's layout, hf-hub:OWNER/NAME or {FOLDER}PATH"
        )
    require_image_tower(name, source.config)
    return source


def _tokenizer(source: Source) -> Tokenizer:
    text = source.config["text_cfg"]
    name, options = text.get("hf_tokenizer_name"), dict(text.get("tokenizer_kwargs") or {})
    length = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
    if not name:
        # open_clip reads the vocabulary, which takes longer than a small CLIP, when it is imported
        of_import = partial(open_clip.tokenize, context_length=length)
        return Tokenizer(
            SimpleTokenizer(context_length=length, **options) if options else of_import
        )
    where = str(source.folder) if source.is_local else name
    with _transformers(source, "tokenizer", where):
        return Tokenizer(
            HFTokenizer(where, length, tokenizer_mode=text.get("tokenizer_mode"), **options)
        )


@contextmanager
def _transformers(source: Source, kind: str, place: str) -> Iterator[None]:
    """Say in one sentence what transformers could not get from a folder, or from the hub."""
    what = f"{kind} {place!r}"
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise WeightsError(
            f"the {what} of {source.name} needs the package transformers: pip install "
            "'kdpl[transformers]'"
        ) from error
    try:
        with _without_notes_of_torchao(), nullcontext() if Path(place).is_dir() else hub_or_cache():
            yield
    except Exception as error:  # whatever the hub client or a file's parser raises
        remedy = f"fetch the model where there is a network, and give its folder as {FOLDER}PATH"
        if source.is_local:
            remedy = (
                f"put the files of its repository into {source.folder}, of a text tower config.json"
            )
        raise WeightsError(
            f"cannot load the {what} of {source.name} ({reason(error)}): {remedy}"
        ) from error


@contextmanager
def _without_notes_of_torchao() -> Iterator[None]:
    """Suppress the warnings of torchao, which transformers imports if it is installed."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _build(model_config: ModelConfig) -> Any:
    # weights come from where the config says, and not from a hub while the model is built; a CoCa's
    # decoder is not used
    changes: dict[str, dict[str, Any]] = {
        "vision_cfg": {"timm_model_pretrained": False, "output_tokens": False},
        "text_cfg": {"hf_model_pretrained": False, "output_tokens": False},
    }
    parts = {key: {**model_config[key], **changed} for key, changed in changes.items()}
    options = {key: model_config[key] for key in _MODEL_OPTIONS if key in model_config}
    is_separate = [
        *map(model_config.get, ("custom_text", "multimodal_cfg")),
        parts["text_cfg"].get("hf_model_name"),
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (open_clip.CustomTextCLIP if any(is_separate) else open_clip.CLIP)(
            **options, **parts
        )


def _image_half(
    model: Any, config: ClipConfig, source: Source, parts: tuple[str, ...]
) -> ImageClip:
    """Load the weights whose names begin with one of ``parts``, and wrap the image tower."""
    quick_gelu = bool(source.config.get("quick_gelu", False))
    _, registered = _REGISTRY.get(config.model, (None, None))
    if config.pretrained == RANDOM:
        warnings.warn(
            f"{config.model} has random weights (pretrained: {RANDOM}): good for tests alone",
            stacklevel=3,
        )
        weights = Weights(model.state_dict(), RANDOM)
    elif source.folder is not None:
        weights = read_weights_of(source, config)
    elif registered and (load := registered.get(config.pretrained or "")):
        weights = Weights(load(), f"{config.model} {config.pretrained}")
    else:
        weights = read_weights(config, quick_gelu, sorted(registered) if registered else None)
    load_weights(model, weights, config.model, parts)
    size = int(source.config["vision_cfg"].get("image_size", DEFAULT_IMAGE_SIZE))
    mean, std = (tuple(weights.images[key]) for key in ("mean", "std"))
    interpolation: Interpolation = (
        "bilinear" if weights.images["interpolation"] == "bilinear" else "bicubic"
    )
    preprocessing = Preprocessing(size, mean, std, weights.images["resize_mode"], interpolation)
    digest = fingerprint(model.visual.state_dict().items())
    return ImageClip(
        image_tower=image_tower(model.visual, source.config, preprocessing),
        logit_scale=math.exp(model.logit_scale.item()),
        identity=ClipIdentity(config.model, config.pretrained or config.model, quick_gelu, digest),
        preprocessing=preprocessing,
    )
