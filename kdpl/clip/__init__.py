"""CLIP models, their weights and their two towers; the only package that imports open_clip.

The towers wrap the modules of an ``open_clip.CLIP`` and add no weights. Both are frozen, so that
prompts can be put between their layers: their parameters take no gradient, unless the whole tower
is trained.

Public names load on first use: a classifier needs no text tower.
"""

from typing import TYPE_CHECKING

from kdpl.runtime.optional import lazily

if TYPE_CHECKING:
    from kdpl.clip.clip import Clip, ImageClip
    from kdpl.clip.identity import RANDOM, ClipConfig, ClipIdentity, Preprocessing
    from kdpl.clip.loading import PROMPTSRC_TEMPLATES, load_clip, load_image_clip, register_model
    from kdpl.clip.modules import CosineHead, Float32Module, Frozen, cosine_logits, store_frozen
    from kdpl.clip.towers.image import ImageTower, PromptableImageTower
    from kdpl.clip.towers.text import CLASSES_AT_ONCE, ArrangedTexts

__all__ = [
    "CLASSES_AT_ONCE", "PROMPTSRC_TEMPLATES", "RANDOM", "ArrangedTexts", "Clip",
    "ClipConfig", "ClipIdentity", "CosineHead", "Float32Module", "Frozen", "ImageClip",
    "ImageTower", "Preprocessing", "PromptableImageTower", "cosine_logits",
    "load_clip", "load_image_clip", "register_model", "store_frozen",
]  # fmt: skip

__getattr__ = lazily(
    __name__,
    {
        "clip": ["Clip", "ImageClip"],
        "identity": ["RANDOM", "ClipConfig", "ClipIdentity", "Preprocessing"],
        "loading": ["PROMPTSRC_TEMPLATES", "load_clip", "load_image_clip", "register_model"],
        "modules": ["CosineHead", "Float32Module", "Frozen", "cosine_logits", "store_frozen"],
        "towers.image": ["ImageTower", "PromptableImageTower"],
        "towers.text": ["CLASSES_AT_ONCE", "ArrangedTexts"],
    },
)
