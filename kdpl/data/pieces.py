"""Pieces of a pool of shards, of some megabytes each: the unit in which training shuffles it."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

WINDOW = 64
"""Pieces whose images are mixed with each other."""

Indices = npt.NDArray[np.int64]


def shuffle(starts: Indices, num_images: int, rng: np.random.Generator) -> Iterator[Indices]:
    """Draw the order of images that lie in pieces, such that few pieces are in use at any time.

    The pieces come in a random order, one at each turn. Each image of a piece is due after a random time of up to
    ``WINDOW`` turns, so that a batch has images of about ``WINDOW`` pieces.

    Args:
        starts: First image of each piece, rising from 0.
        num_images: Number of images N.
        rng: The stream to draw from.

    Yields:
        The next images of the order, over all each of 0 … N - 1 once.
    """
    stops = np.append(starts[1:], num_images)
    times, images = np.empty(0), np.empty(0, dtype=np.int64)
    for turn, piece in enumerate(rng.permutation(len(starts)).tolist()):
        new = np.arange(starts[piece], stops[piece])
        times, images = np.append(times, turn + WINDOW * rng.random(len(new))), np.append(images, new)
        due = times < turn + 1
        yield images[due][np.argsort(times[due], kind="stable")]
        times, images = times[~due], images[~due]
    yield images[np.argsort(times, kind="stable")]
