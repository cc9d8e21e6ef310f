"""The kinds of towers that kdpl works with; a new one is one file with its tower and one entry here.

A model of a known kind needs no entry: it is one of open_clip's, or ``kdpl.clip.register_model`` makes it known.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import open_clip
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from kdpl.clip.identity import Preprocessing
from kdpl.clip.image import ImageTower, PromptableImageTower
from kdpl.clip.text import TextTower
from kdpl.errors import WeightsError

_USE = "use a CLIP of OpenAI's kind, such as ViT-B-16 or ViT-L-14"

ModelConfig = Mapping[str, Any]
"""A model config in open_clip's form: ``embed_dim``, ``vision_cfg``, ``text_cfg`` and, where true, ``quick_gelu``."""


@dataclass(frozen=True)
class ImageFamily:
    """A kind of image tower.

    ``fits`` takes a model config and open_clip's visual module that was built from it; ``tower`` wraps that module with
    its preprocessing and the width of its embedding.
    """

    fits: Callable[[ModelConfig, Any], bool]
    tower: Callable[[Any, Preprocessing, int], ImageTower]


@dataclass(frozen=True)
class TextFamily:
    """A kind of text tower that a teacher can be tuned with.

    ``misfit`` returns why a model config, or the model if it is built already, is not of this kind; ``tower`` wraps the
    text half of a model; ``tokenizer`` returns its tokenizer, texts to token ids [N, context_length].
    """

    misfit: Callable[[ModelConfig, Any], str | None]
    tower: Callable[[Any], TextTower]
    tokenizer: Callable[[Any], Callable[[list[str]], Tensor]]


def _has_clip_blocks(module: Any) -> bool:
    return all(type(block) is ResidualAttentionBlock for block in module.transformer.resblocks)


def _pools_by_class_token(config: ModelConfig, visual: Any) -> bool:
    vision = config["vision_cfg"]
    return (
        "timm_model_name" not in vision
        and not isinstance(vision["layers"], list | tuple)
        and not vision.get("attentional_pool")
        and not vision.get("final_ln_after_pool")
        and vision.get("pool_type", "tok") == "tok"
        and _has_clip_blocks(visual)
    )


def _not_clips_text(config: ModelConfig, model: Any) -> str | None:
    text = config["text_cfg"]
    reasons = {
        "its text tower is a Hugging Face model": text.get("hf_model_name"),
        "its tokenizer is not CLIP's": text.get("hf_tokenizer_name"),
        "its text tower is a separate module": config.get("custom_text"),
        "its text tower has no causal mask": text.get("no_causal_mask"),
        "its text tower does not pool at the end of text": text.get("embed_cls")
        or text.get("pool_type", "argmax") != "argmax",
        "its text projection is not a matrix": text.get("proj_type", "linear") != "linear" or text.get("proj_bias"),
        "the blocks of its text tower are not CLIP's": model is not None and not _has_clip_blocks(model),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


IMAGE_FAMILIES = {
    "class token": ImageFamily(_pools_by_class_token, PromptableImageTower),
    # a ResNet, a timm model or another transformer: encodes images, and has no tokens that prompts could stand beside
    "any": ImageFamily(lambda *_: True, ImageTower),
}
"""Kinds of image towers by name; the first one that fits is taken."""

TEXT_FAMILIES = {
    "CLIP": TextFamily(
        _not_clips_text, TextTower, lambda clip: open_clip.SimpleTokenizer(context_length=clip.context_length)
    )
}
"""Kinds of text towers by name; the first one that fits is taken."""


def image_tower(visual: Any, config: ModelConfig, preprocessing: Preprocessing) -> ImageTower:
    """Wrap open_clip's visual module as a tower of the first family that it fits."""
    family = next(family for family in IMAGE_FAMILIES.values() if family.fits(config, visual))
    return family.tower(visual, preprocessing, int(config["embed_dim"]))


def text_family(name: str, config: ModelConfig, model: Any = None) -> TextFamily:
    """Find the family of a model's text tower, by its config and, if it is built, its modules, or a WeightsError."""
    for family in TEXT_FAMILIES.values():
        reason = family.misfit(config, model)
        if reason is None:
            return family
    raise WeightsError(f"{name} cannot be a teacher, because {reason}: {_USE}")


def require_image_tower(name: str, config: ModelConfig) -> None:
    """Raise a WeightsError for a CoCa, and for images that are not square."""
    if "multimodal_cfg" in config:
        raise WeightsError(f"{name} cannot be used, because it is a CoCa: {_USE}")
    if isinstance(config["vision_cfg"].get("image_size"), list | tuple):
        raise WeightsError(f"{name} cannot be used, because its image tower is not square: {_USE}")


DEFAULT_IMAGE_SIZE = 224  # open_clip's, where a config does not say it

MOST_LAYERS = 256
"""More layers than any CLIP has; building them takes a second."""

_LARGEST = 1_000_000  # of any size; the memory for tensors of it is checked by names and shapes


def require_modest(config: ModelConfig, image_size: int) -> None:
    """Raise a ValueError for settings of an artifact that would build endlessly, or that timm would fetch or look up.

    ``config`` is the image part of a model config, said to be for square images of ``image_size`` pixels.
    """
    vision = config.get("vision_cfg")
    if not isinstance(vision, dict) or config.keys() - {"embed_dim", "vision_cfg", "quick_gelu"}:
        raise ValueError("image_config has unknown settings, or none of an image tower")
    for name, value in {**config, "vision_cfg": None, **vision}.items():
        values = value if isinstance(value, list) else [value]
        limit = MOST_LAYERS if name == "layers" else _LARGEST
        if len(values) > MOST_LAYERS or not all(_is_plain(each, limit) for each in values):
            raise ValueError(f"setting '{name[:80]}' of image_config is out of range")
    if vision.get("image_size", DEFAULT_IMAGE_SIZE) != image_size:
        raise ValueError(f"image_config is not for images of {image_size} pixels")
    timm_name = vision.get("timm_model_name")
    if timm_name is not None:
        import timm

        # names such as hf-hub:owner/model would be fetched
        if not isinstance(timm_name, str) or ":" in timm_name or "/" in timm_name or not timm.is_model(timm_name):
            raise ValueError("image_config names a model that timm does not know")


def _is_plain(value: object, limit: int) -> bool:
    if isinstance(value, int | float):
        return abs(value) <= limit  # false for nan
    return value is None or (isinstance(value, str) and len(value) <= 100)
