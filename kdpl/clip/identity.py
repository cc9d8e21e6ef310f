"""A CLIP's name, source and preprocessing, as plain values that configs and artifacts hold."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pydantic.dataclasses
from pydantic import Field

from kdpl.runtime.artifacts import STRICT, Text

LogitScale = Annotated[float, Field(gt=0, le=10_000)]
"""A factor on cosine similarities; CLIPs are trained with up to 100."""

RANDOM = "random"
"""The pretrained tag that stands for random weights, the same ones every time."""


@dataclass(frozen=True)
class ClipConfig:
    """Which CLIP, with which weights.

    Attributes:
        model: Name of a model of open_clip or of the registry, for example ``ViT-L-14-quickgelu``.
        pretrained: A pretrained tag (``openai``), a weights file (.safetensors, .pt, .pth, .bin), or ``random``.
        quick_gelu: The activation that a weights file was trained with, needed where the file does not say it: true for
            QuickGELU (OpenAI, MetaCLIP, DFN), false for GELU (LAION, DataComp).
        mean: Per-channel mean of the images in [0, 1] that a weights file was trained on. This and the next two are
            needed where the model's pretrained weights differ in them and no ``open_clip_config.json`` lies beside
            the file.
        std: Their standard deviation.
        resize_mode: Their resizing; only ``shortest``, by the short edge, can be done.
    """

    model: str
    pretrained: str
    quick_gelu: bool | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize_mode: Literal["shortest", "squash", "longest"] | None = None

    def __str__(self) -> str:
        return f"{self.model}, weights {Path(self.pretrained).name}"


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class ClipIdentity:
    """A CLIP by name, with the tag or file of its weights and the digest of its image tower's."""

    model: Text
    pretrained: Text
    quick_gelu: bool
    fingerprint: Text


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Preprocessing:
    """The images that a CLIP expects: their side in pixels, and per-channel statistics of images in [0, 1]."""

    image_size: Annotated[int, Field(ge=1, le=8192)]  # the largest CLIP takes a tenth of it
    mean: Annotated[tuple[float, ...], Field(min_length=3, max_length=3)]
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=3, max_length=3)]
