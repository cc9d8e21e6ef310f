"""Images as training reads them: how they are arranged and shuffled."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kdpl.data.names import Indices

Shuffle = Callable[[np.random.Generator], Iterator[Indices]]
"""Draws the order of an epoch from its stream: the next images, until each came once."""


class Arranged(NamedTuple):
    """Images as training reads them, and how they are shuffled; None: as a uniform permutation."""

    sources: Sequence[str]
    shuffle: Shuffle | None = None
