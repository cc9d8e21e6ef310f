"""One look at each image of a dataset: whether it can be used, and a digest that tells copies."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from kdpl.data.decoding import Decoding, open_image
from kdpl.data.parallel import in_parallel
from kdpl.data.sources import content_of
from kdpl.errors import DataError
from kdpl.runtime.origin import digest

_GREY = 16  # greatest difference of the channels of a grey pixel, of 256
_PLAIN = 0.9  # least share of an image's border that is as bright as its median
_AS_BRIGHT = 24
_DETAILS = 0.05  # least contrast of a picture's details, of its own; photographs have over 0.06

PICTURE_EDGE = 64
"""Pixels an edge of the pictures for ``near_copies``; smaller images have too few details."""


class Inspected(NamedTuple):
    """What decoding an image has shown.

    Attributes:
        problem: Why it cannot be used, with a remedy; None if it can.
        digest: Digest of the file's bytes, or of the pixels of an image without a file.
        size: Width and height.
        drawn: True if it is grey on a plain ground, as drawings are.
        picture: Small picture for ``near_copies``; empty if it tells nothing, as of drawings.
    """

    problem: str | None = None
    digest: str = ""
    size: tuple[int, int] | None = None
    drawn: bool = False
    picture: bytes = b""


def inspect(
    sources: Sequence[str],
    title: str,
    opener: Callable[[str], Image.Image] | None = None,
    decoding: Decoding = Decoding(),
    workers: int | None = None,
    drawings: bool = False,
    pictures: bool = False,
) -> Iterator[Inspected]:
    """Decode every image, in order, on all cores and under a progress bar.

    An ``opener`` is for images that are not files or members of shards; ``workers`` are processes,
    by default one for each core. Only with ``drawings`` is ``drawn`` found out, and only with
    ``pictures`` is ``picture``.
    """
    look = partial(_inspect, opener=opener, decoding=decoding, drawings=drawings, pictures=pictures)
    return in_parallel(look, sources, title, workers)


def _inspect(
    source: str,
    opener: Callable[[str], Image.Image] | None,
    decoding: Decoding,
    drawings: bool,
    pictures: bool,
) -> Inspected:
    # the image itself is not returned: it would have to travel between processes
    try:
        if opener is None:
            content = content_of(source)
            image = open_image(source, content, decoding)
        else:
            image = opener(source)
            content = image.tobytes()
    except DataError as error:
        return Inspected(str(error))
    drawn = (drawings or pictures) and is_drawn(image)
    picture = picture_of(image) if pictures and not drawn else b""
    return Inspected(None, digest([content]), image.size, drawn, picture)


def is_drawn(image: Image.Image) -> bool:
    """Return whether an RGB image is grey with a border of one brightness."""
    pixels = np.asarray(image.resize((32, 32))).astype(np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])[:, 0]
    grey = np.ptp(pixels, axis=2).max() < _GREY
    alike = np.abs(border - np.median(border)) < _AS_BRIGHT
    return bool(grey and alike.mean() > _PLAIN)


def picture_of(image: Image.Image) -> bytes:
    """Return the small grey picture of an RGB image.

    Empty if the image is too small for one, or shows no more than a picture of half the edge, such
    as a smaller image that was enlarged: it has no details that tell a copy from a look-alike.
    """
    if min(image.size) < PICTURE_EDGE:
        return b""
    edges = PICTURE_EDGE, PICTURE_EDGE
    picture = image.resize(edges, Resampling.BOX, reducing_gap=2.0).convert("L")
    smaller = picture.resize((PICTURE_EDGE // 2, PICTURE_EDGE // 2), Resampling.BOX)
    enlarged = (smaller.resize(edges, how) for how in (Resampling.BICUBIC, Resampling.NEAREST))
    pixels = np.asarray(picture, dtype=float)
    details = min(float((pixels - np.asarray(same)).std()) for same in enlarged)
    return picture.tobytes() if details > _DETAILS * pixels.std() else b""
