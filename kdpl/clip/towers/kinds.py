"""Kinds of towers that kdpl supports, and what is safe to build of a stranger's settings.

Here are CLIP's own transformers, and what takes no prompts; rooms bring further kinds. A model
of a known kind needs none: it is one of open_clip's, or ``kdpl.clip.register_model`` makes it
known.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import open_clip
import timm
from open_clip.transformer import ResidualAttentionBlock

from kdpl.clip.identity import Preprocessing
from kdpl.clip.towers.class_token import ClassTokenTower
from kdpl.clip.towers.image import IMAGE_SETTINGS, ImageTower
from kdpl.clip.towers.text import PromptableTextTower, TextTower
from kdpl.errors import WeightsError

ModelConfig = Mapping[str, Any]
"""A model config of open_clip.

It has ``embed_dim``, ``vision_cfg``, ``text_cfg`` and, where true, ``quick_gelu``.
"""

ImageKind = Callable[[Any, ModelConfig], type[ImageTower] | None]
TextKind = Callable[[Any, int], TextTower | None]


@dataclass(frozen=True)
class Towers:
    """Kinds of towers of a room, by functions that return None for modules of other kinds.

    ``image`` returns the class for open_clip's visual module and its model config; ``text`` wraps
    a text module, in which a text's first token is at the given position.
    """

    image: ImageKind
    text: TextKind


def image_tower(visual: Any, config: ModelConfig, preprocessing: Preprocessing) -> ImageTower:
    """Wrap open_clip's visual module for a model config as the first kind of tower that fits."""
    from kdpl.clip.towers.further import TOWERS

    kinds = [_class_token_kind, TOWERS.image]
    fitting = (kind for find in kinds if (kind := find(visual, config)) is not None)
    # or it encodes images, and takes no prompts, as a convolutional network
    return next(fitting, ImageTower)(visual, preprocessing, config)


def _class_token_kind(visual: Any, config: ModelConfig) -> type[ImageTower] | None:
    vision = config["vision_cfg"]
    fits = (
        "timm_model_name" not in vision
        and not isinstance(vision["layers"], list | tuple)
        and not vision.get("attentional_pool")
        and not vision.get("final_ln_after_pool")
        and not vision.get("no_ln_pre")
        and vision.get("pool_type", "tok") == "tok"
        and has_clip_blocks(visual)
    )
    return ClassTokenTower if fits else None


def text_tower(name: str, model: Any, start: int) -> TextTower:
    """Wrap the text half of an open_clip model as the first tower that fits, or a WeightsError.

    ``start`` is the position of a text's first token.
    """
    text = getattr(model, "text", model)
    from kdpl.clip.towers.further import TOWERS

    for wrap in (_causal_tower, TOWERS.text):
        if (tower := wrap(text, start)) is not None:
            return tower
    if isinstance(text, open_clip.CLIP):
        raise WeightsError(
            f"{name} cannot be a teacher, because its text tower is of no known kind: set "
            "custom_text in it"
        )
    # a module of its own, such as a CoCa's: encodes texts as they are
    return TextTower(text)


def _causal_tower(text: Any, start: int) -> TextTower | None:
    if not has_clip_blocks(text) or text.attn_mask is None:
        return None
    pool, end = pooling(text)
    return PromptableTextTower(text, start, end) if pool in ("argmax", "eos") else None


def has_clip_blocks(module: Any) -> bool:
    """Return whether a module of open_clip has CLIP's residual blocks, on the usual tokens."""
    blocks = getattr(getattr(module, "transformer", None), "resblocks", [None])
    usual = getattr(module, "cls_emb", None) is None
    return usual and all(type(block) is ResidualAttentionBlock for block in blocks)


def pooling(text: Any) -> tuple[str, int | None]:
    """Return the token that becomes a text's feature, in open_clip's words, and the end's id.

    Without an id, the end of a text is the highest of the vocabulary.
    """
    pool = str(getattr(text, "text_pool_type", None) or text.pool_type)
    return pool, int(getattr(text, "text_eos_id", None) or text.eos_id) if pool == "eos" else None


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
    if config.keys() - {*IMAGE_SETTINGS}:
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
