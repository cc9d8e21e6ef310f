"""Which modules of open_clip have towers of these kinds."""

from typing import Any

import timm

from kdpl.clip.towers.bidirectional_text import WholeTextTower
from kdpl.clip.towers.hugging_face_text import HuggingFaceTextTower
from kdpl.clip.towers.kinds import ModelConfig, Towers, has_clip_blocks, pooling
from kdpl.clip.towers.text import TextTower
from kdpl.clip.towers.vision_transformer import TransformerTower


def image_kind(visual: Any, config: ModelConfig) -> type[TransformerTower] | None:
    """Return the kind of vision transformers, of open_clip or timm, and None for others."""
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        is_transformer = not isinstance(config["vision_cfg"]["layers"], list | tuple)
    else:
        is_transformer = isinstance(trunk, timm.models.VisionTransformer | timm.models.Eva)
    return TransformerTower if is_transformer else None


def text_tower(text: Any, start: int) -> TextTower | None:
    """Wrap a text module without a causal mask, or one of Hugging Face; None for others."""
    if has_clip_blocks(text) and text.attn_mask is None:
        return WholeTextTower(text, *pooling(text), start)
    if hasattr(getattr(text, "transformer", None), "get_input_embeddings"):
        return HuggingFaceTextTower(text, start)
    return None


TOWERS = Towers(image_kind, text_tower)
