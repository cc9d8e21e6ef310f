"""Name, source and preprocessing of a CLIP, as plain values for configs and artifacts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import pydantic.dataclasses
from pydantic import Field

from kdpl.errors import WeightsError
from kdpl.runtime.artifacts import STRICT, Text, metadata
from kdpl.runtime.resizing import CropPct, Interpolation, ResizeMode, Resizing

LogitScale = Annotated[float, Field(gt=0, le=10_000)]
"""Scale of cosine similarities; CLIPs are trained with up to 100."""

RANDOM = "random"
"""Pretrained tag for random weights, the same every time."""


@dataclass(frozen=True)
class ClipConfig:
    """CLIP model and weights to load.

    Attributes:
        model: Name of a model of open_clip or of the registry, for example ``ViT-L-14-quickgelu``;
            or an address of model and weights in open_clip's layout, ``hf-hub:OWNER/NAME`` or
            ``local-dir:PATH``; for a student also a network of timm, such as
            ``timm:mobilenetv4_conv_small``.
        pretrained: A pretrained tag (``openai``), a weights file (.safetensors, .pt, .pth, .bin),
            or ``random``; None for an address, and for timm's weights.
        quick_gelu: The activation that the weights were trained with, needed with a weights file:
            true for QuickGELU (OpenAI, MetaCLIP, DFN), false for GELU (LAION, DataComp). None: as
            open_clip has it.
        mean: Per-channel mean of the images in [0, 1] that the weights were trained on. None for
            this and the next two: from open_clip or the ``open_clip_config.json`` next to a weights
            file. Needed for a file without one if the model's pretrained weights differ in it.
        std: Per-channel standard deviation of these images.
        resize_mode: Resizing of these images, see ``Preprocessing``.
        image_size: Edge in pixels of the images for a network of timm; None: as it was trained.
    """

    model: str
    pretrained: str | None = None
    quick_gelu: bool | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize_mode: ResizeMode | None = None
    image_size: int | None = None

    def __str__(self) -> str:
        weights = f", weights {Path(self.pretrained).name}" if self.pretrained else ""
        return f"{self.model}{weights}"


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class ClipIdentity:
    """CLIP by name, with the tag or file of its weights and a digest of its image tower's weights.

    A file's path is kept as given: a relative path is relative to the working directory.
    """

    model: Text
    pretrained: Text
    quick_gelu: bool
    fingerprint: Text


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Preprocessing:
    """Preprocessing of a tower's images: size in pixels, channel statistics in [0, 1], resizing.

    ``resize_mode``: ``shortest`` resizes the short edge and crops the middle, ``squash`` resizes
    both edges. ``crop_pct`` is the edge of the square as a share of the resized image's edge, 1 for
    a CLIP, and less for most networks of timm.
    """

    image_size: Annotated[int, Field(ge=1, le=8192)]  # the largest CLIP takes a tenth of it
    mean: Annotated[tuple[float, ...], Field(min_length=3, max_length=3)]
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=3, max_length=3)]
    resize_mode: ResizeMode = "shortest"
    interpolation: Interpolation = "bicubic"
    # omitted from the files of CLIPs
    crop_pct: Annotated[CropPct, Field(exclude_if=lambda share: share == 1)] = 1.0

    @property
    def resizing(self) -> Resizing:
        """Part of the preprocessing before pixels are normalised."""
        return Resizing(self.image_size, self.resize_mode, self.interpolation, self.crop_pct)


@metadata
class TeacherSettings:
    """Metadata of prompts and class vectors: their teacher, and its CLIP."""

    clip: ClipIdentity
    logit_scale: LogitScale
    # words before a class name that initialised the text prompts; None: noise
    context: Text | None
    preprocessing: Preprocessing


def require_resizing(name: str, mode: Any) -> ResizeMode:
    """Return the resize mode of a model's images, or a WeightsError for another one."""
    modes = get_args(ResizeMode)
    if mode not in modes:
        raise WeightsError(
            f"the images of {name} are resized as {mode!r}, expected {' or '.join(modes)}: use "
            "another model"
        )
    return cast(ResizeMode, mode)
