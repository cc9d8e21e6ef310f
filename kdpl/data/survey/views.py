"""Choice of random views by what class names and images look like."""

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

    from kdpl.data.survey.found import FoundImage

_NUMBERS = "zero|one|two|three|four|five|six|seven|eight|nine|ten"
# whole names such as 7, seven, b, letter b, upper-case B, left arrow, right hand
_NOT_MIRRORED = re.compile(
    rf"(.*\b(digit|number|letter|character|upper.?case|lower.?case)\b.*)|\d|\w|{_NUMBERS}"
    r"|.*\b(left|right)\b.*",
    re.IGNORECASE,
)
_MOST = 0.5  # least share of the classes, or of the images, that decides
_GREY = 16  # greatest difference of the channels of a grey pixel, of 256
_PLAIN = 0.9  # least share of an image's border that is as bright as its median
_AS_BRIGHT = 24


def views_to_choose(names: Collection[str], images: Sequence["FoundImage"]) -> str | None:
    """Return why images must not be mirrored or closely cropped, or None if they may be."""
    of_names = sum(bool(_NOT_MIRRORED.fullmatch(name)) for name in names)
    if of_names > _MOST * len(names):
        return "by their names the classes are digits, letters, or left and right"
    if sum(image.drawn for image in images) > _MOST * len(images):
        return "most images are grey on a plain ground, like written characters"
    return None


def is_drawn(image: "Image") -> bool:
    """Return whether an RGB image is grey with a border of one brightness."""
    pixels = np.asarray(image.resize((32, 32))).astype(np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])[:, 0]
    grey = np.ptp(pixels, axis=2).max() < _GREY
    alike = np.abs(border - np.median(border)) < _AS_BRIGHT
    return bool(grey and alike.mean() > _PLAIN)
