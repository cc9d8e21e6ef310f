"""Differences between open_clip 3.3 and 4; the other files work with both.

4 also has models for sound, captions and any number of patches (NaFlex), and further tokenizers.
"""

from collections.abc import Mapping
from typing import Any

import open_clip

from kdpl.errors import WeightsError


def list_models() -> list[str]:
    """Return the names of open_clip's models that kdpl can use."""
    return [name for name in open_clip.list_models() if _is_clip(open_clip.get_model_config(name))]


def require_clip(name: str, config: Mapping[str, Any]) -> None:
    """Raise a WeightsError for the config of a model that is not a CLIP of square images."""
    if not _is_clip(config):
        raise WeightsError(
            f"{name} is not a CLIP of square images and texts in CLIP's own or a Hugging Face "
            "tokenizer: use another model of open_clip"
        )


def text_settings(text: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the text part of a config by the end-of-text id, which 4 has no default for."""
    return {"eos_id": 2, **text} if text.get("pool_type") == "eos" else {**text}


def _is_clip(config: Mapping[str, Any]) -> bool:
    vision, text = config.get("vision_cfg"), config.get("text_cfg")
    if vision is None or text is None or "genlip_cfg" in config:
        return False
    return "image_seq_len" not in vision and not {"text_arch", "tokenizer_type"} & text.keys()
