"""Images that are a box of another image, ``IMAGE#xywh=percent:LEFT,TOP,WIDTH,HEIGHT``.

The part behind the number sign is that of W3C Media Fragments. Without ``percent:`` the numbers are
pixels. Both count from the upper left corner of the image as viewers show it, turned by its
orientation tag.
"""

import math
from io import BytesIO

from kdpl.data.decoding import open_image
from kdpl.data.sources import content_of
from kdpl.errors import DataError

MARK, _PERCENT = "#xywh=", "percent:"

Box = tuple[float, float, float, float]
"""Left, top, width and height, as shares of the image from 0 to 1."""


def name_of(image: str, box: Box) -> str:
    """Return the name of a box of an image, a path or URL."""
    return f"{image}{MARK}{_PERCENT}{','.join(f'{100 * share:.4f}' for share in box)}"


def enlarge(box: Box, margin: float) -> Box:
    """Add a share of width and height at each side, as far as the image goes."""
    left, top, width, height = box
    right = min(1, left + width * (1 + margin))
    bottom = min(1, top + height * (1 + margin))
    left, top = max(0, left - width * margin), max(0, top - height * margin)
    return left, top, right - left, bottom - top


def fault_of(box: Box) -> str | None:
    """Return why nothing of an image is in a box, as half a sentence; None if something is."""
    left, top, width, height = box
    if not math.isfinite(sum(box)) or width <= 0 or height <= 0:
        return "is empty"
    inside = left < 1 and top < 1 and left + width > 0 and top + height > 0
    return None if inside else "lies outside of the image"


def read_crop(source: str) -> bytes:
    """Return a box of an image as an image file, in RGB and upright.

    A DataError if the image cannot be read, or nothing of it is in the box.
    """
    path, _, text = source.rpartition(MARK)
    try:
        left, top, width, height = map(float, text.removeprefix(_PERCENT).split(","))
    except ValueError:
        raise DataError(
            f"image {source} has no box behind {MARK}, expected four numbers with commas: "
            "correct its name"
        ) from None
    image = open_image(path, content_of(path))
    wide, high = (100, 100) if text.startswith(_PERCENT) else image.size
    box = (left / wide, top / high, width / wide, height / high)
    if fault := fault_of(box):
        raise DataError(f"the box of {source} {fault}: correct it, or leave it out")
    file = BytesIO()
    image.crop(_pixels(box, *image.size)).save(file, "PPM")
    return file.getvalue()


def _pixels(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom in whole pixels, at least one each way."""
    left = min(max(0, round(box[0] * width)), width - 1)
    top = min(max(0, round(box[1] * height)), height - 1)
    right = min(width, round((box[0] + box[2]) * width))
    bottom = min(height, round((box[1] + box[3]) * height))
    return left, top, max(right, left + 1), max(bottom, top + 1)


SOURCES = {MARK: read_crop}
