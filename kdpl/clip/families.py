"""Kinds of towers that kdpl supports; a new one is one file with its tower and one branch here.

A model of a known kind needs none: it is one of open_clip's, or ``kdpl.clip.register_model`` makes
it known.
"""

from collections.abc import Mapping
from typing import Any

import open_clip
import timm
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

from kdpl.clip.blocks import PromptableImageTower
from kdpl.clip.class_token import ClassTokenTower
from kdpl.clip.hugging_face_text import HuggingFaceTextTower
from kdpl.clip.identity import Preprocessing
from kdpl.clip.image import ImageTower
from kdpl.clip.text import PromptableTextTower, TextTower
from kdpl.clip.whole_text import WholeTextTower
from kdpl.errors import WeightsError

ModelConfig = Mapping[str, Any]
"""A model config of open_clip.

It has ``embed_dim``, ``vision_cfg``, ``text_cfg`` and, where true, ``quick_gelu``.
"""


def _has_clip_blocks(module: Any) -> bool:
    transformer = getattr(module, "transformer", None)
    return all(
        type(block) is ResidualAttentionBlock for block in getattr(transformer, "resblocks", [None])
    )


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


def image_tower(visual: Any, config: ModelConfig, preprocessing: Preprocessing) -> ImageTower:
    """Wrap open_clip's visual module for a model config as the first kind of tower that fits."""
    trunk = getattr(visual, "trunk", None)
    if _pools_by_class_token(config, visual):
        return ClassTokenTower(visual, preprocessing, config)
    if isinstance(trunk, timm.models.VisionTransformer | timm.models.Eva) or isinstance(
        visual, VisionTransformer
    ):
        return PromptableImageTower(visual, preprocessing, config)
    # a convolutional network: encodes images, and has no tokens that prompts could stand beside
    return ImageTower(visual, preprocessing, config)


def text_tower(name: str, model: Any, start: int) -> TextTower:
    """Wrap the text half of an open_clip model as the first tower that fits, or a WeightsError.

    ``start`` is the position of a text's first token.
    """
    text = getattr(model, "text", model)
    if _has_clip_blocks(text) and getattr(text, "cls_emb", None) is None:
        pool = str(getattr(text, "text_pool_type", None) or text.pool_type)
        # without an id, the end of a text is the highest of the vocabulary
        end = int(getattr(text, "text_eos_id", None) or text.eos_id) if pool == "eos" else None
        if text.attn_mask is None:
            return WholeTextTower(text, pool, start, end)
        if pool in ("argmax", "eos"):
            return PromptableTextTower(text, start, end)
    if isinstance(text, HFTextEncoder):
        return HuggingFaceTextTower(text, start)
    if isinstance(text, open_clip.CLIP):
        raise WeightsError(
            f"{name} cannot be a teacher, because its text tower is of no known kind: set "
            "custom_text in it"
        )
    # a module of its own, such as a CoCa's: encodes texts as they are
    return TextTower(text)


DEFAULT_IMAGE_SIZE = 224  # open_clip's, where a config does not say it

MOST_LAYERS = 256
"""More layers than any CLIP has; building them takes a second."""

_LARGEST = 1_000_000  # of any size; the memory for tensors of it is checked by names and shapes


def require_modest(config: ModelConfig, image_size: int) -> None:
    """Raise an error for settings of an artifact that are not safe to build.

    They would build endlessly, or make timm fetch or look up a model.

    ``config`` is the image part of a model config, said to be for square images of ``image_size``
    pixels.
    """
    vision = config["vision_cfg"]
    if config.keys() - {"embed_dim", "vision_cfg", "quick_gelu"}:
        raise ValueError("image_config has unknown settings")
    for name, value in {**config, "vision_cfg": None, **vision}.items():
        values = value if isinstance(value, list) else [value]
        limit = MOST_LAYERS if name in ("layers", "num_hidden_layers") else _LARGEST
        if len(values) > MOST_LAYERS or not all(_is_plain(each, limit) for each in values):
            raise ValueError(f"setting '{name[:80]}' of image_config is out of range")
    if vision.get("image_size", DEFAULT_IMAGE_SIZE) != image_size:
        raise ValueError(f"image_config is not for images of {image_size} pixels")
    if "timm_model_name" in vision:
        require_timm(vision["timm_model_name"])


def require_timm(name: str) -> None:
    """Raise a ValueError for a model that timm does not know, or would fetch or read."""
    # one such as hf-hub:owner/model would be fetched, and one with a slash read from a folder
    if {*":/\\"} & {*name} or not timm.is_model(name):
        raise ValueError("image_config names a model that timm does not know")


def _is_plain(value: object, limit: int) -> bool:
    if isinstance(value, int | float):
        return abs(value) <= limit  # false for nan
    return value is None or (isinstance(value, str) and len(value) <= 100)
