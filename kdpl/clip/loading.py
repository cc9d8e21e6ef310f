"""Finding a CLIP, loading its weights, and splitting it into frozen towers.

Models come from open_clip's list, or from the registry and other sources.
"""

import difflib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import open_clip
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

from kdpl.clip import timm_networks
from kdpl.clip.clip import Clip, ImageClip
from kdpl.clip.identity import RANDOM, ClipConfig, Preprocessing, require_resizing
from kdpl.clip.miniatures.models import CONFIGS, TAG, packaged_weights
from kdpl.clip.tokens import Tokenizer
from kdpl.clip.towers.bidirectional_text import WholeTextTower
from kdpl.clip.towers.building import (
    DEFAULT_IMAGE_SIZE,
    NO_TEXT,
    ModelConfig,
    build_clip,
    build_tower,
    has_clip_blocks,
    image_tower,
)
from kdpl.clip.towers.hugging_face_text import HuggingFaceTextTower
from kdpl.clip.towers.image import ImageTower
from kdpl.clip.towers.text import PromptableTextTower, TextTower
from kdpl.clip.versions import list_models, require_clip, text_settings
from kdpl.clip.weights import StateDict, Weights, load_weights, read_weights
from kdpl.errors import ConfigError, WeightsError, reason

# METHOD: PromptSRC's text regulariser averages over the first 60 of the 80 published templates
PROMPTSRC_TEMPLATES: tuple[Callable[[str], str], ...] = tuple(OPENAI_IMAGENET_TEMPLATES[:60])


_REGISTRY: dict[str, tuple[ModelConfig, Mapping[str, Callable[[], StateDict]]]] = {
    name: (config, {TAG: partial(packaged_weights, name)}) for name, config in CONFIGS.items()
}


def register_model(
    name: str, config: ModelConfig, weights: Mapping[str, Callable[[], StateDict]]
) -> None:
    """Register a CLIP for configs; ``weights`` by pretrained tag return float32 state dicts."""
    _REGISTRY[name] = config, weights


def has_text_tower(model: str) -> bool:
    """Return whether a model, by name or address, is a CLIP and can read class names."""
    return not model.startswith(timm_networks.PREFIX)


def known_models() -> dict[str, tuple[ModelConfig, list[str]]]:
    """Return the model config and pretrained tags of each CLIP with weights, by name."""
    tags_of = open_clip.list_pretrained_tags_by_model
    models = {
        name: (open_clip.get_model_config(name), tags)
        for name in list_models()
        if (tags := tags_of(name))
    }
    return models | {name: (config, [*weights]) for name, (config, weights) in _REGISTRY.items()}


def load_clip(config: ClipConfig) -> Clip:
    """Load a CLIP in float32 on the CPU, frozen, in evaluation mode.

    Raises:
        WeightsError: Model, tokenizer or weights cannot be loaded, or do not fit each other.
    """
    if not has_text_tower(config.model):
        raise WeightsError(
            f"{config.model} is not a CLIP and cannot read class names: use it as a student, "
            "and a CLIP as teacher"
        )
    model_config, read = _find(config)
    text = model_config["text_cfg"]
    tokenize = _tokenizer(config.model, text)  # before anything large is built or fetched
    source = text.get("hf_model_name")
    with from_transformers(config.model, "text tower", source) if source else nullcontext():
        model = build_clip({**model_config, "text_cfg": text_settings(text)})
    image = _image_half(model, config, model_config, read, ("",))
    tower = text_tower(config.model, model, tokenize.start)
    return image.with_text(tower, tokenize)


def load_image_clip(config: ClipConfig) -> ImageClip:
    """Load the image half of a CLIP, or a network that is not one; errors as in ``load_clip``."""
    if config.model.startswith(timm_networks.PREFIX):
        return timm_networks.load_image_clip(config)
    model_config, read = _find(config)
    model = build_clip({**model_config, "text_cfg": NO_TEXT})
    return _image_half(model, config, model_config, read, ("visual.", "logit_scale"))


def build_image_tower(model_config: ModelConfig, preprocessing: Preprocessing) -> ImageTower:
    """Build an image tower from an open_clip model config, with weights still to be loaded."""
    if "timm" in model_config["vision_cfg"]:
        return timm_networks.build_image_tower(model_config, preprocessing)
    return build_tower(model_config, preprocessing)


def _find(config: ClipConfig) -> tuple[ModelConfig, Callable[[], Weights]]:
    """Find a model's config, by name or address, and a function that reads its weights.

    The config has the activation that the weights were trained with.
    """
    name, tag = config.model, config.pretrained or ""
    read: Callable[[], Weights]
    if name.partition(":")[0] in ("hf-hub", "local-dir"):
        # imports this file
        from kdpl.clip import open_clip_layout

        read = partial(open_clip_layout.read_weights, config)
        listed: ModelConfig = open_clip_layout.read_model_config(name)
    elif name in _REGISTRY:
        listed, registered = _REGISTRY[name]
        read = (
            (lambda: Weights(registered[tag](), f"{name} {tag}"))
            if tag in registered
            else partial(read_weights, config, sorted(registered))
        )
    elif name in open_clip.list_models():
        listed = open_clip.get_model_config(name)
        read = partial(read_weights, config, open_clip.list_pretrained_tags_by_model(name))
    else:
        names = [*_REGISTRY, *list_models()]
        close = difflib.get_close_matches(name, names, n=3) or names[:3]
        raise WeightsError(
            f"no CLIP model is called {name!r}: use a name of open_clip, such as "
            f"{', '.join(close)}, or the address of one in open_clip's layout, hf-hub:OWNER/NAME "
            "or local-dir:PATH"
        )
    if config.image_size is not None:
        raise ConfigError(f"{name} is a CLIP with a fixed size of images: remove clip.image_size")
    require_clip(name, listed)
    # the name of a model need not tell the activation of its weights
    trained = config.quick_gelu
    if trained is None:
        trained = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu") or None
    return listed if trained is None else {**listed, "quick_gelu": trained}, read


def text_tower(name: str, model: Any, start: int) -> TextTower:
    """Wrap the text half of an open_clip model, with texts from ``start`` on, or a WeightsError."""
    text = getattr(model, "text", model)
    if has_clip_blocks(text):
        # the token that becomes the feature; without an id, a text ends at the highest one
        pool = str(getattr(text, "text_pool_type", None) or text.pool_type)
        end = int(getattr(text, "text_eos_id", None) or text.eos_id) if pool == "eos" else None
        if text.attn_mask is None:
            return WholeTextTower(text, pool, end, start)
        if pool in ("argmax", "eos"):
            return PromptableTextTower(text, start, end)
    if hasattr(getattr(text, "transformer", None), "get_input_embeddings"):
        return HuggingFaceTextTower(text, start, text.config.pad_token_id)
    if isinstance(text, open_clip.CLIP):
        raise WeightsError(
            f"{name} cannot be a teacher, because its text tower is of no known kind: set "
            "custom_text in it"
        )
    # another module, such as a CoCa's: encodes texts without prompts
    return TextTower(text)


def _tokenizer(model: str, text: Mapping[str, Any]) -> Tokenizer:
    source, options = text.get("hf_tokenizer_name"), {**(text.get("tokenizer_kwargs") or {})}
    options.pop("trust_remote_code", None)  # a downloaded config must not decide that
    length = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
    if source:
        with from_transformers(model, "tokenizer", source):
            mode = text.get("tokenizer_mode")
            return Tokenizer(HFTokenizer(source, length, tokenizer_mode=mode, **options))
    if options:
        return Tokenizer(SimpleTokenizer(context_length=length, **options))
    # reuse the vocabulary read on import: reading it takes longer than a small CLIP
    return Tokenizer(partial(open_clip.tokenize, context_length=length))


@contextmanager
def from_transformers(model: str, kind: str, source: str) -> Iterator[None]:
    """Turn an error of transformers with a folder or the hub into a WeightsError."""
    try:
        import transformers  # noqa: F401 - before any request to the hub

        yield
    except ImportError as error:
        raise WeightsError(
            f"the {kind} {source!r} of {model} needs the package transformers: pip install "
            "'kdpl[transformers]'"
        ) from error
    except Exception as error:  # anything from the hub client or a file's parser
        raise WeightsError(
            f"cannot load the {kind} {source!r} of {model} ({reason(error)}): fetch the model and "
            "the files of its text tower where there is a network, and give their folder as "
            "local-dir:PATH"
        ) from error


def _image_half(
    model: Any,
    config: ClipConfig,
    model_config: ModelConfig,
    read: Callable[[], Weights],
    parts: tuple[str, ...],
) -> ImageClip:
    """Load the weights whose names begin with one of ``parts``, and wrap the image tower."""
    name = config.model
    if config.pretrained == RANDOM:
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
        require_resizing(name, images["resize_mode"]),
        # as in open_clip; in training it may have been drawn for each image
        "bilinear" if images["interpolation"] == "bilinear" else "bicubic",
    )
    tower = image_tower(model.visual, model_config, preprocessing)
    quick_gelu = bool(model_config.get("quick_gelu"))
    return ImageClip.of(tower, math.exp(model.logit_scale.item()), config, quick_gelu)
