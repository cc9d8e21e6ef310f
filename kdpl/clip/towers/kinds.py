"""Blocks of open_clip's modules, and safety checks of untrusted settings."""

from collections.abc import Mapping
from typing import Any

import timm
from open_clip.transformer import ResidualAttentionBlock

from kdpl.clip.towers.image import IMAGE_SETTINGS

ModelConfig = Mapping[str, Any]
"""Config of open_clip: ``embed_dim``, ``vision_cfg``, ``text_cfg``, perhaps ``quick_gelu``."""


def has_clip_blocks(module: Any) -> bool:
    """Return whether a module of open_clip runs CLIP's residual blocks on the usual tokens."""
    blocks = getattr(getattr(module, "transformer", None), "resblocks", [None])
    usual = getattr(module, "cls_emb", None) is None
    return usual and all(type(block) is ResidualAttentionBlock for block in blocks)


DEFAULT_IMAGE_SIZE = 224  # open_clip's default

MOST_LAYERS = 256
"""More layers than in any CLIP; building them takes a second."""

_LARGEST = 1_000_000  # for any setting; memory is bounded by checks of names and shapes


def require_modest(config: ModelConfig, image_size: int) -> None:
    """Raise an error for image settings that would build endlessly, or make timm fetch a model.

    ``config``, from an artifact, is declared for square images of ``image_size`` pixels.
    """
    # refuse unknown settings, and large or nested values
    vision = config["vision_cfg"]
    if config.keys() - {*IMAGE_SETTINGS}:
        raise ValueError("image_config has unknown settings")
    for name, value in {**config, "vision_cfg": None, **vision}.items():
        values = value if isinstance(value, list) else [value]
        limit = MOST_LAYERS if name in ("layers", "num_hidden_layers") else _LARGEST
        if len(values) > MOST_LAYERS or not all(_is_plain(item, limit) for item in values):
            raise ValueError(f"setting '{name[:80]}' of image_config is out of range")
    if vision.get("image_size", DEFAULT_IMAGE_SIZE) != image_size:
        raise ValueError(f"image_config is not for images of {image_size} pixels")
    if "timm_model_name" in vision:
        require_timm(vision["timm_model_name"])


def require_timm(name: str) -> None:
    """Raise a ValueError for a model that is not in timm, or that timm would fetch or read."""
    # hf-hub:owner/model would be fetched, and a name with a slash read from a folder
    if {*":/\\"} & {*name} or not timm.is_model(name):
        raise ValueError("image_config names a model that timm does not know")


def _is_plain(value: object, limit: int) -> bool:
    if isinstance(value, int | float):
        return abs(value) <= limit  # false for nan
    return value is None or (isinstance(value, str) and len(value) <= 100)
