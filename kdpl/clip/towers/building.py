"""Image towers from model configs, with safety checks of configs that are not trusted."""

from collections.abc import Mapping
from typing import Any

import open_clip
import timm
import torch
from open_clip.transformer import ResidualAttentionBlock

from kdpl.clip.identity import Preprocessing
from kdpl.clip.towers.clip_vit import ClassTokenTower
from kdpl.clip.towers.hooked_vit import TransformerTower
from kdpl.clip.towers.image import IMAGE_SETTINGS, ImageTower

ModelConfig = Mapping[str, Any]
"""Config of open_clip: ``embed_dim``, ``vision_cfg``, ``text_cfg``, perhaps ``quick_gelu``."""

OPEN_CLIP_SETTINGS = open_clip.CLIPVisionCfg.__dataclass_fields__.keys()
"""Settings of ``vision_cfg`` that open_clip knows; other libraries have more."""

DEFAULT_IMAGE_SIZE = 224  # open_clip's default

MOST_LAYERS = 256
"""More layers than in any CLIP; building them takes a second."""

_LARGEST = 1_000_000  # for any setting; memory is bounded by checks of names and shapes

# the smallest text tower that open_clip builds, for image towers alone
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}


def build_tower(model_config: ModelConfig, preprocessing: Preprocessing) -> ImageTower:
    """Build an image tower of open_clip from a model config, with weights still to be loaded."""
    visual = build_clip({**model_config, "text_cfg": NO_TEXT}).visual
    return image_tower(visual, model_config, preprocessing)


def build_clip(model_config: ModelConfig) -> Any:
    """Build a CLIP of open_clip from its config, with the same random weights every time."""
    # load no weights from a hub while the model is built; a CoCa's decoder is not used
    vision = {**model_config["vision_cfg"], "timm_model_pretrained": False, "output_tokens": False}
    text = {**model_config["text_cfg"], "hf_model_pretrained": False, "output_tokens": False}
    options = {**model_config, "vision_cfg": vision, "text_cfg": text}
    custom_text = [options.pop("custom_text", False), options.pop("multimodal_cfg", False)]
    options.pop("projection", None)
    model = open_clip.CLIP
    if any([*custom_text, text.get("hf_model_name")]):
        model = open_clip.CustomTextCLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model(**options)


def image_tower(visual: Any, config: ModelConfig, preprocessing: Preprocessing) -> ImageTower:
    """Wrap open_clip's visual module in the first kind of tower that fits its model config."""
    if _has_class_token(visual, config):
        return ClassTokenTower(visual, preprocessing, config)
    if _is_transformer(visual, config):
        return TransformerTower(visual, preprocessing, config)
    return ImageTower(visual, preprocessing, config)


def _has_class_token(visual: Any, config: ModelConfig) -> bool:
    vision = config["vision_cfg"]
    return (
        "timm_model_name" not in vision
        and not isinstance(vision["layers"], list | tuple)
        and not vision.get("attentional_pool")
        and not vision.get("final_ln_after_pool")
        and not vision.get("no_ln_pre")
        and vision.get("pool_type", "tok") == "tok"
        and has_clip_blocks(visual)
    )


def _is_transformer(visual: Any, config: ModelConfig) -> bool:
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        return not isinstance(config["vision_cfg"]["layers"], list | tuple)
    return isinstance(trunk, timm.models.VisionTransformer | timm.models.Eva)


def has_clip_blocks(module: Any) -> bool:
    """Return whether a module of open_clip runs CLIP's residual blocks on the usual tokens."""
    blocks = getattr(getattr(module, "transformer", None), "resblocks", [None])
    usual = getattr(module, "cls_emb", None) is None
    return usual and all(type(block) is ResidualAttentionBlock for block in blocks)


def require_modest(config: ModelConfig, image_size: int) -> None:
    """Raise an error for image settings that would build endlessly, or make timm fetch a model.

    ``config``, from an artifact, is declared for square images of ``image_size`` pixels.
    """
    vision = config["vision_cfg"]
    if config.keys() - {*IMAGE_SETTINGS}:
        raise ValueError("image_config has unknown settings")
    for name, value in {**config, "vision_cfg": None, **vision}.items():
        values = value if isinstance(value, list) else [value]
        limit = MOST_LAYERS if name == "layers" else _LARGEST
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
