"""A CLIP's name, source and preprocessing, as plain values that configs and artifacts hold."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pydantic.dataclasses
from pydantic import Field

from kdpl.runtime.artifacts import STRICT, Text

LogitScale = Annotated[float, Field(gt=0, le=10_000)]
"""A factor on cosine similarities; CLIPs are trained with up to 100."""

ResizeMode = Literal["shortest", "squash", "longest"]
Interpolation = Literal["bicubic", "bilinear"]

RANDOM = "random"
"""The pretrained tag that stands for random weights, the same ones every time."""


@dataclass(frozen=True)
class ClipConfig:
    """Which CLIP, with which weights.

    Attributes:
        model: Name of a model of open_clip or of the registry, for example ``ViT-L-14-quickgelu``; or the address of
            one in open_clip's layout, ``hf-hub:OWNER/NAME`` or ``local-dir:PATH``, which has its weights with it; for a
            student also a network of timm, such as ``timm:mobilenetv4_conv_small``.
        pretrained: A pretrained tag (``openai``), a weights file (.safetensors, .pt, .pth, .bin), or ``random``; None
            for an address, and for timm's own weights.
        quick_gelu: The activation that a weights file was trained with, needed where the file does not say it: true for
            QuickGELU (OpenAI, MetaCLIP, DFN), false for GELU (LAION, DataComp).
        mean: Per-channel mean of the images in [0, 1] that a weights file was trained on. This and the next two are
            needed where the model's pretrained weights differ in them and no ``open_clip_config.json`` lies beside
            the file.
        std: Their standard deviation.
        resize_mode: Their resizing: the short edge to the image's size and a crop, both edges, or the long edge.
        image_size: Edge in pixels of the images that a network of timm is to take; None: as it was trained.
    """

    model: str
    pretrained: str | None = None
    quick_gelu: bool | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize_mode: ResizeMode | None = None
    image_size: int | None = None

    def __str__(self) -> str:
        return f"{self.model}, weights {Path(self.pretrained).name}" if self.pretrained else self.model


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class ClipIdentity:
    """A CLIP by name, with the tag or file of its weights and the digest of its image tower's."""

    model: Text
    pretrained: Text
    quick_gelu: bool
    fingerprint: Text


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Preprocessing:
    """The images that a CLIP expects: their side in pixels, per-channel statistics of images in [0, 1], their resizing.

    ``resize_mode``: ``shortest`` resizes the short edge and crops the middle, ``squash`` both edges, ``longest`` the
    long edge and pads with black.
    """

    image_size: Annotated[int, Field(ge=1, le=8192)]  # the largest CLIP takes a tenth of it
    mean: Annotated[tuple[float, ...], Field(min_length=3, max_length=3)]
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=3, max_length=3)]
    resize_mode: ResizeMode = "shortest"
    interpolation: Interpolation = "bicubic"
