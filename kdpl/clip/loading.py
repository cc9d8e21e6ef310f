"""Finding a CLIP, loading its weights, and taking it apart into frozen towers.

Models come from open_clip's list, or from the registry and the sources that plugins add.
"""

import difflib
import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

from kdpl.clip.identity import RANDOM, ClipConfig, ClipIdentity, Preprocessing
from kdpl.clip.tokens import Tokenizer
from kdpl.clip.towers.choice import image_tower, text_tower
from kdpl.clip.towers.image import ImageTower
from kdpl.clip.towers.kinds import DEFAULT_IMAGE_SIZE, ModelConfig
from kdpl.clip.towers.text import TextTower
from kdpl.clip.versions import list_models, require_clip, text_settings
from kdpl.clip.weights import StateDict, Weights, load_weights, read_weights
from kdpl.errors import ConfigError, WeightsError, reason
from kdpl.runtime import plugins
from kdpl.runtime.network import hub_or_cache

# METHOD: PromptSRC's text regulariser averages over the first 60 of the 80 published templates
PROMPTSRC_TEMPLATES: tuple[Callable[[str], str], ...] = tuple(OPENAI_IMAGENET_TEMPLATES[:60])

# the smallest text tower that open_clip builds, where the image tower alone is wanted
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}


@dataclass(frozen=True)
class ImageClip:
    """The image half of a frozen CLIP, or a network that is no CLIP: all that stage 2 needs."""

    image_tower: ImageTower
    # factor of cosine similarities, already exponentiated, 100 for OpenAI's weights; None for a
    # network that is no CLIP
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


@dataclass(frozen=True)
class Source:
    """Functions of models that an address names, which begins with a scheme.

    ``load_clip`` is None for models that are no CLIPs, and have no text tower. Where another
    library than open_clip builds the image tower, the scheme is a key of its ``vision_cfg``.
    """

    load_clip: Callable[[ClipConfig], Clip] | None
    load_image_clip: Callable[[ClipConfig], ImageClip]
    build_image_tower: Callable[[ModelConfig, Preprocessing], ImageTower] | None = None


_SOURCES: dict[str, Source] = {}


def register_source(scheme: str, source: Source) -> None:
    """Make models known to configs by addresses that begin with ``SCHEME:``."""
    _SOURCES[scheme] = source


_REGISTRY: dict[str, tuple[ModelConfig, Mapping[str, Callable[[], StateDict]]]] = {}


def register_model(
    name: str, config: ModelConfig, weights: Mapping[str, Callable[[], StateDict]]
) -> None:
    """Make a CLIP known to configs by name; its config is a ``kdpl.clip.towers.kinds.ModelConfig``.

    ``weights`` are functions by pretrained tag that return the whole float32 state dict of the
    ``open_clip.CLIP``.
    """
    _REGISTRY[name] = config, weights


_REGISTRATIONS = (
    "kdpl.clip.miniatures:register",
    "kdpl.clip.timm_networks:register",
    "kdpl.clip.hugging_face.loading:register",
    "kdpl.clip.hugging_face.open_clip_layout:register",
)
"""Functions that make further models of kdpl known, by name, as each file imports this one."""


def _load_registrations() -> None:
    for path in _REGISTRATIONS:
        resolve_name(path)()
    for register in plugins.load_all("models").values():
        register()


def _source(model: str) -> Source | None:
    _load_registrations()
    return _SOURCES.get(model.partition(":")[0])


def has_text_tower(model: str) -> bool:
    """Return whether a model, by its name or address, is a CLIP, which can read class names."""
    source = _source(model)
    return source is None or source.load_clip is not None


def known_models() -> dict[str, tuple[ModelConfig, list[str]]]:
    """Return the model config and pretrained tags of each CLIP that has weights, by name.

    They come from the registry and from open_clip.
    """
    _load_registrations()
    registered = {name: (config, list(weights)) for name, (config, weights) in _REGISTRY.items()}
    usable = {*list_models()}
    tagged = dict.fromkeys(name for name, _ in open_clip.list_pretrained() if name in usable)
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
    if source := _source(config.model):
        if source.load_clip is None:
            raise WeightsError(
                f"{config.model} is no CLIP and cannot read class names: use it as a student, "
                "and a CLIP as teacher"
            )
        return source.load_clip(config)
    return make_clip(config, *_found(config))


def make_clip(config: ClipConfig, found: ModelConfig, read: Callable[[], Weights]) -> Clip:
    """Build a CLIP of a model config, and load the weights that ``read`` returns into it."""
    model_config = _checked(config, found)
    text = model_config["text_cfg"]
    tokenize = _tokenizer(config.model, text)  # before anything large is built or fetched
    place = text.get("hf_model_name")
    with from_transformers(config.model, "text tower", place) if place else nullcontext():
        model = _build(model_config)
    image = _image_half(model, config, model_config, read, ("",))
    tower = text_tower(config.model, model, tokenize.start)
    digest = fingerprint(tower.state_dict().items())
    return Clip(**vars(image), text_tower=tower, tokenize=tokenize, text_fingerprint=digest)


def load_image_clip(config: ClipConfig) -> ImageClip:
    """Load the image half of a CLIP, or a network that is no CLIP; errors as of ``load_clip``."""
    if source := _source(config.model):
        return source.load_image_clip(config)
    return make_image_clip(config, *_found(config))


def make_image_clip(
    config: ClipConfig, found: ModelConfig, read: Callable[[], Weights]
) -> ImageClip:
    """Build the image half of a CLIP as ``make_clip`` does."""
    model_config = _checked(config, found)
    model = _build({**model_config, "text_cfg": _NO_TEXT})
    return _image_half(model, config, model_config, read, ("visual.", "logit_scale"))


def build_image_tower(model_config: ModelConfig, preprocessing: Preprocessing) -> ImageTower:
    """Build an image tower from an open_clip model config, with weights still to be loaded."""
    _load_registrations()
    for scheme in _SOURCES.keys() & model_config["vision_cfg"].keys():
        if (build := _SOURCES[scheme].build_image_tower) is not None:
            return build(model_config, preprocessing)
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


def _found(config: ClipConfig) -> tuple[ModelConfig, Callable[[], Weights]]:
    """Find a model of the registry or of open_clip by name, and what reads its weights."""
    name, tag = config.model, config.pretrained or ""
    if name in _REGISTRY:
        found, registered = _REGISTRY[name]
        if tag in registered:
            return found, lambda: Weights(registered[tag](), f"{name} {tag}")
        return found, partial(read_weights, config, sorted(registered))
    if name in open_clip.list_models():
        tags = open_clip.list_pretrained_tags_by_model(name)
        return open_clip.get_model_config(name), partial(read_weights, config, tags)
    known = [*_REGISTRY, *list_models()]
    close = difflib.get_close_matches(name, known, n=3) or known[:3]
    raise WeightsError(
        f"no CLIP model is called {name!r}: use a name of open_clip, such as {', '.join(close)}, "
        "or the address of one in open_clip's layout, hf-hub:OWNER/NAME or local-dir:PATH"
    )


def _checked(config: ClipConfig, found: ModelConfig) -> ModelConfig:
    """Return a model config with the activation that its weights were trained with."""
    name = config.model
    if config.image_size is not None:
        raise ConfigError(
            f"{name} is a CLIP, which takes images of its own size: remove clip.image_size"
        )
    require_clip(name, found)
    # the name of a model need not say with which activation its weights were trained
    tag = open_clip.get_pretrained_cfg(name, config.pretrained or "")
    trained = tag.get("quick_gelu") or None if config.quick_gelu is None else config.quick_gelu
    return found if trained is None else {**found, "quick_gelu": trained}


def _tokenizer(model: str, text: Mapping[str, Any]) -> Tokenizer:
    """Make the tokenizer that the text part of a model config describes."""
    place, options = text.get("hf_tokenizer_name"), {**(text.get("tokenizer_kwargs") or {})}
    options.pop("trust_remote_code", None)  # a downloaded config has no say in that
    length = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
    if place:
        with from_transformers(model, "tokenizer", place):
            mode = text.get("tokenizer_mode")
            return Tokenizer(HFTokenizer(place, length, tokenizer_mode=mode, **options))
    if options:
        return Tokenizer(SimpleTokenizer(context_length=length, **options))
    # open_clip reads the vocabulary, which takes longer than a small CLIP, when it is imported
    return Tokenizer(partial(open_clip.tokenize, context_length=length))


@contextmanager
def from_transformers(
    model: str, kind: str, place: str, scheme: str = "local-dir:"
) -> Iterator[None]:
    """Say in one sentence what transformers could not get from a folder, or from the hub."""
    try:
        import transformers  # noqa: F401 - before the hub is asked

        with nullcontext() if Path(place).is_dir() else hub_or_cache():
            yield
    except ImportError as error:
        raise WeightsError(
            f"the {kind} {place!r} of {model} needs the package transformers: pip install "
            "'kdpl[transformers]'"
        ) from error
    except Exception as error:  # whatever the hub client or a file's parser raises
        raise WeightsError(
            f"cannot load the {kind} {place!r} of {model} ({reason(error)}): fetch the model and "
            "the files of its text tower where there is a network, and give their folder as "
            f"{scheme}PATH"
        ) from error


def _build(model_config: ModelConfig) -> Any:
    # weights come from where the config says, and not from a hub while the model is built; a CoCa's
    # decoder is not used
    vision = {**model_config["vision_cfg"], "timm_model_pretrained": False, "output_tokens": False}
    text = text_settings(model_config["text_cfg"])
    text |= {"hf_model_pretrained": False, "output_tokens": False}
    options = {**model_config, "vision_cfg": vision, "text_cfg": text}
    has_own_text = [options.pop("custom_text", False), options.pop("multimodal_cfg", False)]
    options.pop("projection", None)
    model = open_clip.CLIP
    if any([*has_own_text, text.get("hf_model_name")]):
        model = open_clip.CustomTextCLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model(**options)


def _image_half(
    model: Any,
    config: ClipConfig,
    model_config: ModelConfig,
    read: Callable[[], Weights],
    parts: tuple[str, ...],
) -> ImageClip:
    """Load the weights whose names begin with one of ``parts``, and wrap the image tower."""
    name, tag = config.model, config.pretrained or config.model
    if tag == RANDOM:
        warnings.warn(
            f"{name} has random weights (pretrained: {RANDOM}): good for tests alone", stacklevel=3
        )
        weights = Weights(model.state_dict(), RANDOM)
    else:
        weights = read()
    load_weights(model, weights, name, parts)
    images = dict(weights.images)
    images |= {key: value for key, value in vars(config).items() if key in images and value}
    preprocessing = Preprocessing(
        int(model_config["vision_cfg"].get("image_size", DEFAULT_IMAGE_SIZE)),
        tuple(images["mean"]),
        tuple(images["std"]),
        images["resize_mode"],
        # as open_clip, which may have drawn it anew for each image in training
        "bilinear" if images["interpolation"] == "bilinear" else "bicubic",
    )
    digest = fingerprint(model.visual.state_dict().items())
    return ImageClip(
        image_tower=image_tower(model.visual, model_config, preprocessing),
        logit_scale=math.exp(model.logit_scale.item()),
        identity=ClipIdentity(name, tag, bool(model_config.get("quick_gelu")), digest),
        preprocessing=preprocessing,
    )
