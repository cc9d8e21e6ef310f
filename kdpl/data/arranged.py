"""Arrangement of images for training, and how they are shuffled."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kdpl.data.names import Indices

Shuffle = Callable[[np.random.Generator], Iterator[Indices]]
"""Draws the order of an epoch from its stream: yields the next images until each came once."""


class Arranged(NamedTuple):
    """Images in reading order; ``shuffle`` None draws a uniform permutation."""

    sources: Sequence[str]
    shuffle: Shuffle | None = None
