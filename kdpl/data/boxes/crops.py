"""Boxes of images as images, ``IMAGE#xywh=percent:LEFT,TOP,WIDTH,HEIGHT``.

The part after the number sign follows W3C Media Fragments. Without ``percent:``, the numbers are
pixels. Both count from the upper left corner of the image as viewers show it, turned by its
orientation tag.
"""

from collections.abc import Callable
from io import BytesIO

from kdpl.data.decoding import open_image
from kdpl.errors import DataError

MARK, _PERCENT = "#xywh=", "percent:"

Box = tuple[float, float, float, float]
"""Left, top, width and height; if nothing else is said, as shares of the image from 0 to 1."""


def name_of(image: str, box: Box, margin: float = 0) -> str:
    """Return the name of a box of an image, enlarged by a ``margin``, a share of its edges."""
    left, top, width, height = box
    left, top = left - width * margin, top - height * margin
    shares = (left, top, width * (1 + 2 * margin), height * (1 + 2 * margin))
    return f"{image}{MARK}{_PERCENT}{','.join(f'{100 * share:.4f}' for share in shares)}"


def read_crop(source: str, content_of: Callable[[str], bytes]) -> bytes:
    """Return a box of an image as an upright RGB file, clipped to the image, or a DataError."""
    path = photo_of(source)
    # crop whole pixels, and write them without compression
    image = open_image(path, content_of(path))
    left, top, width, height = box_of(source, image.width, image.height)
    first_x, last_x = _pixels(left, width, image.width, source)
    first_y, last_y = _pixels(top, height, image.height, source)
    image.crop((first_x, first_y, last_x, last_y)).save(file := BytesIO(), "PPM")
    return file.getvalue()


def photo_of(source: str) -> str:
    """Return the image that a box is of, or an image itself."""
    return source.rpartition(MARK)[0] or source


def box_of(source: str, width: int, height: int) -> Box:
    """Return left, top, width and height of a box in pixels of its image, or a DataError."""
    text = source.rpartition(MARK)[2]
    try:
        across, down, wide, high = map(float, text.removeprefix(_PERCENT).split(","))
    except ValueError:
        raise DataError(
            f"image {source} has no box behind {MARK}, expected four numbers with commas: "
            "correct its name"
        ) from None
    x, y = (0.01 * width, 0.01 * height) if text.startswith(_PERCENT) else (1, 1)
    return across * x, down * y, wide * x, high * y


def _pixels(start: float, length: float, size: int, source: str) -> tuple[int, int]:
    """Return the range of pixels of a box along an axis of ``size`` pixels, at least one."""
    # written so that NaN is refused
    if not (length > 0 and start < size and start + length > 0):
        raise DataError(
            f"the box of {source} is empty or outside of the image: correct it, or leave it out"
        )
    first = min(max(0, round(start)), size - 1)
    return first, max(first + 1, round(min(size, start + length)))
