"""Opening image files."""

from importlib.util import find_spec
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from kdpl.errors import DataError

# Pillow goes by the content and not by the name, and gives some formats, such as EPS, to other programs
_FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
_FORMATS += ("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()


def open_image(path: str, content: bytes | None = None) -> Image.Image:
    """Open and decode an image file as RGB.

    The first frame of an animation is used; transparency is dropped and the colour below it stays; 16-bit grey values
    lose their lower byte. Orientation tags are not followed, as in the field.

    Args:
        path: A JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 or, with Pillow 11.3, AVIF image, whatever its ending.
        content: The file's bytes, if they were read already.

    Raises:
        DataError: The file is missing, truncated, not an image, or has more than about 179 million pixels.
    """
    try:
        with Image.open(path if content is None else BytesIO(content), formats=_FORMATS) as image:
            return to_rgb(image)
    except FileNotFoundError as error:
        raise DataError(f"image {path} does not exist: restore it, or read the dataset again without it") from error
    except Exception as error:  # Pillow's decoders raise any error on damaged bytes
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "no format that Pillow knows" if unknown else str(error).rstrip(".") or type(error).__name__
        raise DataError(f"image {path} cannot be read ({reason}): replace or remove the file") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image of any mode into RGB, as ``open_image`` does; OSError if it is damaged."""
    if image.mode.startswith("I"):
        # Pillow would cut 16-bit grey values off at 255, which leaves most images white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    # dropped in any case, and Pillow warns of some kinds that are still there
    image.info.pop("transparency", None)
    return image.convert("RGB")
