"""Resizing of an image to a tower's square input, before normalisation."""

from typing import Annotated, Literal

import pydantic.dataclasses
from pydantic import Field

from kdpl.runtime.artifacts import STRICT

ResizeMode = Literal["shortest", "squash"]

Interpolation = Literal["bicubic", "bilinear"]

CropPct = Annotated[float, Field(ge=0.5, le=2)]
"""Crop edge as a share of the resized image's edge, as in timm: 0.875 to 1.15 there."""


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Resizing:
    """Evaluation transform of a tower.

    Random views use at least its size and interpolation. Two towers with equal resizing see the
    same pixels.

    Attributes:
        image_size: Edge S of the square in pixels.
        resize_mode: Resizes the short edge (``shortest``) or both edges (``squash``) to
            S / ``crop_pct`` pixels, rounded down. The centre is cropped, or padded with black.
        interpolation: Interpolation of the resizing, always with antialiasing.
        crop_pct: Edge of the crop as a share of the resized image's edge.
    """

    image_size: Annotated[int, Field(ge=1, le=8192)]  # the largest CLIP takes a tenth of it
    resize_mode: ResizeMode = "shortest"
    interpolation: Interpolation = "bicubic"
    crop_pct: CropPct = 1.0

    @property
    def edge(self) -> int:
        """Pixels to which an edge is resized before the crop."""
        return int(self.image_size / self.crop_pct)
