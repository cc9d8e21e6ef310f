"""Models of the benchmarks: the published sizes, and miniatures for tests."""

from dataclasses import dataclass

import open_clip
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from kdpl.clip import register_model

CONTEXT = "a photo of a"


@dataclass(frozen=True)
class Sizes:
    """Models, and numbers of images and classes.

    Attributes:
        teacher: Name of the teacher's CLIP, with random weights.
        student: Name of the student's CLIP.
        few: Number of classes in most comparisons.
        many: Number of classes in the others.
        prompt_length: Prompt tokens per layer, in all towers.
        prompt_depth: Layers with prompts, in all towers.
        product_edge: Size n of the n × n matrices whose product measures the machine's speed.
        fill_images: Images to fill the cache with, one view each.
        read_images: Images in the cache to read.
        infer_images: Images to classify.
    """

    teacher: str
    student: str
    few: int
    many: int
    prompt_length: int
    prompt_depth: int
    product_edge: int
    fill_images: int
    read_images: int
    infer_images: int

    def names(self, classes: int) -> tuple[str, ...]:
        """Return the first class names of ImageNet."""
        return tuple(IMAGENET_CLASSNAMES[:classes])


FULL = Sizes("ViT-L-14-quickgelu", "ViT-B-16-quickgelu", 100, 1000, 4, 9, 4096, 24, 20_000, 32)
SMALL = Sizes("miniature-teacher", "miniature-student", 5, 12, 2, 3, 256, 16, 200, 12)


def register_miniatures() -> None:
    """Register the models of ``SMALL``."""
    for name, config in _MINIATURES.items():
        register_model(name, config, {})


def text_half(name: str) -> str:
    """Register a CLIP with the text tower of another and a tiny image tower; returns its name."""
    config = _MINIATURES.get(name) or open_clip.get_model_config(name)
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}
    register_model(f"{name}-text", {**config, "vision_cfg": vision}, {})
    return f"{name}-text"


def _miniature(
    width: int, layers: int, patch_size: int, text_width: int, embed_dim: int
) -> dict[str, object]:
    vision = {
        "image_size": 32,
        "layers": layers,
        "width": width,
        "head_width": 16,
        "patch_size": patch_size,
    }
    text = {
        "context_length": 77,
        "vocab_size": 49408,
        "width": text_width,
        "heads": text_width // 8,
        "layers": layers,
    }
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}


# all widths differ, so mixing them up is an error
_MINIATURES = {
    "miniature-teacher": _miniature(width=48, layers=4, patch_size=8, text_width=40, embed_dim=24),
    "miniature-student": _miniature(width=32, layers=4, patch_size=16, text_width=56, embed_dim=20),
}
