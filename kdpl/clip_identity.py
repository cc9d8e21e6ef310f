"""What a CLIP is and what it expects of images, as plain values that configs name and artifacts keep."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RANDOM = "random"
"""The pretrained tag that stands for random weights, the same ones every time."""


@dataclass(frozen=True)
class ClipConfig:
    """Which CLIP, with which weights.

    Attributes:
        model: Name of a model of open_clip or of the registry, for example ``ViT-L-14-quickgelu``.
        pretrained: A pretrained tag (``openai``), a weights file (.safetensors, .pt, .pth, .bin), or ``random``.
        quick_gelu: Needed for a weights file that does not itself say with which activation it was
            trained: true for QuickGELU (OpenAI, MetaCLIP, DFN), false for GELU (LAION, DataComp).
    """

    model: str
    pretrained: str
    quick_gelu: bool | None = None


@dataclass(frozen=True)
class ClipIdentity:
    """What a CLIP is and where its weights came from.

    Attributes:
        model: Name of the model.
        pretrained: Tag or file of the weights.
        quick_gelu: Whether its activations are QuickGELU.
        fingerprint: Digest of the image tower's weights.
    """

    model: str
    pretrained: str
    quick_gelu: bool
    fingerprint: str


@dataclass(frozen=True)
class Preprocessing:
    """What a CLIP expects of an image.

    Attributes:
        image_size: Side of the square input, pixels.
        mean: Per-channel mean of images in [0, 1].
        std: Per-channel standard deviation of images in [0, 1].
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """Build from JSON values.

        Raises:
            KeyError, TypeError, ValueError: A field is missing or garbled.
        """
        mean, std = (tuple(float(x) for x in fields[key]) for key in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3:
            raise ValueError("preprocessing")
        return cls(int(fields["image_size"]), mean, std)
