"""What is measured: the published sizes, and miniatures of the same shape for trying the benchmarks out."""

from dataclasses import dataclass

import open_clip

from kdpl.clip import register_model
from kdpl.clip.loading import IMAGENET_CLASS_NAMES

CONTEXT = "a photo of a"


@dataclass(frozen=True)
class Sizes:
    """The models and amounts of a comparison.

    Attributes:
        teacher: Name of the teacher's CLIP; its weights are random.
        student: Name of the student's CLIP.
        few: Classes of the common case.
        many: Classes of the large case.
        prompt_length: Prompt tokens per layer, in all towers.
        prompt_depth: Layers with prompts of their own, in all towers.
        product_edge: Edge n of the n x n matrices whose product is the machine's speed.
        fill_images: Images that fill the cache, one view each.
        read_images: Images of the cache that reading is measured on.
        infer_images: Images that are classified.
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
        """The first so many of ImageNet's class names."""
        return IMAGENET_CLASS_NAMES[:classes]


FULL = Sizes("ViT-L-14-quickgelu", "ViT-B-16-quickgelu", 100, 1000, 4, 9, 4096, 24, 20_000, 32)
SMALL = Sizes("miniature-teacher", "miniature-student", 5, 12, 2, 3, 256, 16, 200, 12)


def register_miniatures() -> None:
    """Make the models of ``SMALL`` known."""
    for name, config in _MINIATURES.items():
        register_model(name, config, {})


def text_half(name: str) -> str:
    """Register a CLIP with the text tower of another and an image tower of next to nothing, and give its name."""
    config = _MINIATURES.get(name) or open_clip.get_model_config(name)
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}
    register_model(f"{name}-text", {**config, "vision_cfg": vision}, {})
    return f"{name}-text"


def _miniature(width: int, layers: int, patch_size: int, text_width: int, embed_dim: int) -> dict[str, object]:
    vision = {"image_size": 32, "layers": layers, "width": width, "head_width": 16, "patch_size": patch_size}
    text = {"context_length": 77, "vocab_size": 49408, "width": text_width, "heads": text_width // 8, "layers": layers}
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}


# no width of one stands in the other, so that none can be mixed up
_MINIATURES = {
    "miniature-teacher": _miniature(width=48, layers=4, patch_size=8, text_width=40, embed_dim=24),
    "miniature-student": _miniature(width=32, layers=4, patch_size=16, text_width=56, embed_dim=20),
}
