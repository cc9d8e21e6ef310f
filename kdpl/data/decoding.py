"""Opening image files, and handling of transparency and orientation tags."""

import os
import warnings
from importlib.util import find_spec
from io import BytesIO
from typing import Annotated

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from kdpl.errors import DataError, reason

# Pillow goes by content, not by name, and passes some formats, such as EPS, to other programs
_FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
_FORMATS += ("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()

# by EXIF orientation; 1 is upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns of large images as attacks; images below its limit are decoded as usual
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_Byte = Annotated[int, Field(ge=0, le=255)]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Decoding:
    """Conversion of images to RGB; the defaults are for a user's images.

    Attributes:
        background: Colour behind transparent pixels; None drops transparency and keeps the
            colour below it.
        orientation: Whether to turn the image as its EXIF orientation says.
    """

    background: tuple[_Byte, _Byte, _Byte] | None = (255, 255, 255)
    orientation: bool = True

    def to_rgb(self, image: Image.Image, name: str = "an image") -> Image.Image:
        """Turn an image of any mode into RGB, without its metadata.

        Raises:
            OSError: It is damaged.
            DataError: Its values are signed, fractional or of 32 bits; the message begins with
                ``name``.
        """
        # turn it upright, with 8 bits a channel
        image.load()  # a tag may be behind the pixels
        turn = _turn_of(image) if self.orientation else None
        if image.mode[0] in "IF":
            # keep the upper 8 of 16 bits, as Pillow would clip values to 0 and 255, leaving images
            # white or black; for these formats it opens 16 bits as 32
            if not image.mode.startswith("I;16") and image.format not in ("PNG", "PPM"):
                raise DataError(
                    f"{name} has values of another kind than 8 or 16 unsigned bits: convert it to "
                    "these"
                )
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if turn is not None:
            image = image.transpose(turn)
        if self.background is not None and image.has_transparency_data:
            rgba, rgb = image.convert("RGBA"), Image.new("RGB", image.size, self.background)
            rgb.paste(rgba, mask=rgba)
            return rgb
        # transparency is dropped in any case, and Pillow would warn of some kinds
        image.info.pop("transparency", None)
        rgb = image.convert("RGB")
        rgb.info = {}  # so that a decoded image is not turned again
        return rgb


PUBLISHED = Decoding(background=None, orientation=False)
"""Conversion of the benchmark's images, as in published code."""


def open_image(
    path: str,
    content: bytes | None = None,
    decoding: Decoding = Decoding(),
    max_pixels: int | None = None,
) -> Image.Image:
    """Open and decode an image file as RGB.

    The first frame of an animation is used, and the upper 8 bits of 16-bit values.

    Args:
        path: A JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 or, with Pillow 11.3, AVIF image,
            with any file extension.
        content: The file's bytes, if they were read already.
        decoding: How to handle transparency and orientation.
        max_pixels: Largest number of pixels, checked before the image is decoded; Pillow's limit
            is 179 million.

    Raises:
        DataError: The file is missing, truncated, not an image, has too many pixels, or has values
            other than 8 or 16 unsigned bits.
    """
    try:
        with Image.open(path if content is None else BytesIO(content), formats=_FORMATS) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise DataError(
                    f"image {path} has {image.width} × {image.height} pixels, expected at most "
                    f"{max_pixels / 1e6:.0f} million: scale it down"
                )
            return decoding.to_rgb(image, f"image {path}")
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"image {path} does not exist: restore it, or go on without it") from error
    except Exception as error:  # Pillow's decoders raise any error on damaged bytes
        unknown = isinstance(error, UnidentifiedImageError)
        why = "no format that Pillow knows" if unknown else reason(error)
        raise DataError(
            f"image {path} cannot be read ({why}): replace or remove the file"
        ) from error


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return the transpose that an orientation tag asks for; None if upright.

    In an image that is not loaded, a tag behind the pixels is not seen.
    """
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises any error on damaged tags; viewers ignore them as well
        return None


def cores() -> int:
    """Number of processor cores that this process may use, and of images to decode at a time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
