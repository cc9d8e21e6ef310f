"""Random numbers that depend on what they are for, not on who asks when.

Philox is counter-based (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a stream's start is
computed from its key and counter. So the draw for (seed, image, epoch) is the same for any number of workers and
processes, any order of calls, and after a resume.
"""

from typing import Literal

import numpy as np

_PURPOSES = {"augmentation": 0, "order": 1, "share": 2}


def generator(
    seed: int, purpose: Literal["augmentation", "order", "share"], *, epoch: int = 0, index: int = 0
) -> np.random.Generator:
    """The random stream that belongs to a seed, a purpose, an epoch and an image.

    Streams do not overlap: each has 2^64 blocks of its own.
    """
    key = np.array([seed, _PURPOSES[purpose]], dtype=np.uint64)
    counter = np.array([0, index, epoch, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
