"""Settings of an image tower that come with an artifact: which of them are looked at before they are built."""

from collections.abc import Mapping
from typing import Any

DEFAULT_IMAGE_SIZE = 224  # open_clip's, where a config does not say it

MOST_LAYERS = 256
"""More layers than any CLIP has; building them takes a second."""

_SETTINGS = ("embed_dim", "vision_cfg", "quick_gelu")
_LARGEST = 1_000_000  # of any size; what tensors of it would take is seen by their names and shapes


def require_modest(config: Mapping[str, Any], image_size: int) -> None:
    """Refuse settings that would take for ever to build, or lead timm to the network or into a folder.

    Args:
        config: The image part of a model config in open_clip's form, as a classifier holds it.
        image_size: Edge in pixels of the images that it is said to take.

    Raises:
        ValueError: They are not such; the message says which.
    """
    vision = config.get("vision_cfg")
    unknown = config.keys() - set(_SETTINGS)
    if unknown or not isinstance(vision, dict):
        raise ValueError("image_config has unknown settings, or none of an image tower")
    for name, value in [*config.items(), *vision.items()]:
        numbers = value if isinstance(value, list) else [value]
        if name == "vision_cfg":
            continue
        if len(numbers) > MOST_LAYERS or not all(_is_plain(number) for number in numbers):
            raise ValueError(f"setting '{name[:80]}' of image_config is out of range")
    layers = vision.get("layers", 0)
    if any(number > MOST_LAYERS for number in (layers if isinstance(layers, list) else [layers])):
        raise ValueError(f"image_config has more than {MOST_LAYERS} layers")
    if vision.get("image_size", DEFAULT_IMAGE_SIZE) != image_size:
        raise ValueError(f"image_config is not of images of {image_size} pixels")
    _require_timm(vision.get("timm_model_name"))


def _is_plain(value: object) -> bool:
    if isinstance(value, int | float):
        return abs(value) <= _LARGEST  # false for nan
    return value is None or (isinstance(value, str) and len(value) <= 100)


def _require_timm(name: object) -> None:
    if name is None:
        return
    import timm

    # names such as hf-hub:owner/model would be fetched
    if not isinstance(name, str) or ":" in name or "/" in name or not timm.is_model(name):
        raise ValueError("image_config names a model that timm does not know")
