"""Choice of towers for the modules of open_clip."""

from typing import Any

import open_clip
import timm

from kdpl.clip.identity import Preprocessing
from kdpl.clip.towers.bidirectional_text import WholeTextTower
from kdpl.clip.towers.class_token import ClassTokenTower
from kdpl.clip.towers.hugging_face_text import HuggingFaceTextTower
from kdpl.clip.towers.image import ImageTower
from kdpl.clip.towers.kinds import ModelConfig, has_clip_blocks
from kdpl.clip.towers.text import PromptableTextTower, TextTower
from kdpl.clip.towers.vision_transformer import TransformerTower
from kdpl.errors import WeightsError


def image_tower(visual: Any, config: ModelConfig, preprocessing: Preprocessing) -> ImageTower:
    """Wrap open_clip's visual module in the first kind of tower that fits its model config."""
    if _has_class_token(visual, config):
        return ClassTokenTower(visual, preprocessing, config)
    if _is_transformer(visual, config):
        return TransformerTower(visual, preprocessing, config)
    # encodes images without prompts, like a convolutional network
    return ImageTower(visual, preprocessing, config)


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
        return HuggingFaceTextTower(text, start)
    if isinstance(text, open_clip.CLIP):
        raise WeightsError(
            f"{name} cannot be a teacher, because its text tower is of no known kind: set "
            "custom_text in it"
        )
    # another module, such as a CoCa's: encodes texts without prompts
    return TextTower(text)


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
