"""The kinds of towers that kdpl works with; a new one is one file with its tower and one entry here.

A model of a known kind needs no entry: it is one of open_clip's, or ``kdpl.clip.register_model`` makes it known.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import open_clip
import timm
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

from kdpl.clip.blocks import BlocksTower
from kdpl.clip.identity import Preprocessing
from kdpl.clip.image import ClassTokenTower, ImageTower
from kdpl.clip.text import PromptableTextTower, TextTower
from kdpl.clip.whole_text import WholeTextTower
from kdpl.errors import WeightsError

ModelConfig = Mapping[str, Any]
"""A model config in open_clip's form: ``embed_dim``, ``vision_cfg``, ``text_cfg`` and, where true, ``quick_gelu``."""


@dataclass(frozen=True)
class ImageFamily:
    """A kind of image tower.

    ``fits`` takes a model config and open_clip's visual module that was built from it; ``tower`` wraps that module with
    its preprocessing and that config.
    """

    fits: Callable[[ModelConfig, Any], bool]
    tower: Callable[[Any, Preprocessing, ModelConfig], ImageTower]


@dataclass(frozen=True)
class TextFamily:
    """A kind of text tower.

    ``fits`` takes open_clip's text module, or the ``open_clip.CLIP`` that it is a part of; ``tower`` wraps it, with the
    position of a text's first token.
    """

    fits: Callable[[Any], bool]
    tower: Callable[[Any, int], TextTower]


def _has_clip_blocks(module: Any) -> bool:
    transformer = getattr(module, "transformer", None)
    return all(type(block) is ResidualAttentionBlock for block in getattr(transformer, "resblocks", [None]))


def _pools_by_class_token(config: ModelConfig, visual: Any) -> bool:
    vision = config["vision_cfg"]
    return (
        "timm_model_name" not in vision
        and not isinstance(vision["layers"], list | tuple)
        and not vision.get("attentional_pool")
        and not vision.get("final_ln_after_pool")
        and not vision.get("no_ln_pre")
        and vision.get("pool_type", "tok") == "tok"
        and _has_clip_blocks(visual)
    )


def _has_blocks_of_tokens(_: ModelConfig, visual: Any) -> bool:
    trunk = getattr(visual, "trunk", None)
    return isinstance(trunk, timm.models.VisionTransformer | timm.models.Eva) or isinstance(visual, VisionTransformer)


def _end(text: Any) -> int | None:
    """The end-of-text id of a tower that pools there; None for the highest of the vocabulary."""
    return int(getattr(text, "text_eos_id", None) or text.eos_id) if _pool(text) == "eos" else None


def _pool(text: Any) -> str:
    return str(getattr(text, "text_pool_type", None) or text.pool_type)


def _has_tokens(text: Any) -> bool:
    return _has_clip_blocks(text) and getattr(text, "cls_emb", None) is None


IMAGE_FAMILIES = {
    "class token": ImageFamily(_pools_by_class_token, ClassTokenTower),
    "blocks": ImageFamily(_has_blocks_of_tokens, BlocksTower),
    # a convolutional network: encodes images, and has no tokens that prompts could stand beside
    "any": ImageFamily(lambda *_: True, ImageTower),
}
"""Kinds of image towers by name; the first one that fits is taken."""

TEXT_FAMILIES = {
    "causal": TextFamily(
        lambda text: _has_tokens(text) and text.attn_mask is not None and _pool(text) in ("argmax", "eos"),
        lambda text, start: PromptableTextTower(text, start, _end(text)),
    ),
    "whole": TextFamily(
        lambda text: _has_tokens(text) and text.attn_mask is None,
        lambda text, start: WholeTextTower(text, _pool(text), start, _end(text)),
    ),
    # a module of its own, such as a Hugging Face model or a CoCa's: encodes texts as they are
    "any": TextFamily(lambda text: not isinstance(text, open_clip.CLIP), lambda text, _: TextTower(text)),
}
"""Kinds of text towers by name; the first one that fits is taken."""


def image_tower(visual: Any, config: ModelConfig, preprocessing: Preprocessing) -> ImageTower:
    """Wrap open_clip's visual module as a tower of the first family that it fits."""
    family = next(family for family in IMAGE_FAMILIES.values() if family.fits(config, visual))
    return family.tower(visual, preprocessing, config)


def text_tower(name: str, model: Any, start: int) -> TextTower:
    """Wrap the text half of an open_clip model as a tower of the first family that it fits, or raise a WeightsError."""
    text = getattr(model, "text", model)
    for family in TEXT_FAMILIES.values():
        if family.fits(text):
            return family.tower(text, start)
    raise WeightsError(f"{name} cannot be a teacher, because its text tower is of no known kind: set custom_text in it")


def takes_visual_prompts(config: ModelConfig) -> bool:
    """If the image tower of a model has tokens that prompts can stand beside, by its config alone."""
    vision = config["vision_cfg"]
    if "timm_model_name" in vision:
        return timm.models.is_model_in_modules(vision["timm_model_name"], _TIMM_TOKENS)
    return not isinstance(vision["layers"], list | tuple)


def takes_text_prompts(config: ModelConfig) -> bool:
    """If the text tower of a model takes prompts, by its config alone: neither a Hugging Face model nor a CoCa's."""
    text = config["text_cfg"]
    return not text.get("hf_model_name") and not text.get("embed_cls")


def require_image_tower(name: str, config: ModelConfig) -> None:
    """Raise a WeightsError for images that are not square."""
    if isinstance(config["vision_cfg"].get("image_size"), list | tuple):
        raise WeightsError(
            f"{name} cannot be used, because its images are not square: use a CLIP such as ViT-B-16 or ViT-L-14"
        )


_TIMM_TOKENS = {"deit", "eva", "vision_transformer", "vision_transformer_hybrid", "vitamin"}
"""timm's modules whose networks are vision transformers."""

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
    timm_name = vision.get("timm_model_name") or vision.get("timm", "vit_base_patch16_224")
    # names such as hf-hub:owner/model would be fetched
    if not isinstance(timm_name, str) or ":" in timm_name or "/" in timm_name or not timm.is_model(timm_name):
        raise ValueError("image_config names a model that timm does not know")


def _is_plain(value: object, limit: int) -> bool:
    if isinstance(value, int | float):
        return abs(value) <= limit  # false for nan
    return value is None or (isinstance(value, str) and len(value) <= 100)
