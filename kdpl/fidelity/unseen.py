"""Unlabelled images that a student is compared with its target on, and not distilled on."""

from collections.abc import Iterable

import numpy as np

from kdpl.data.names import Indices, Names, places
from kdpl.data.pool import UnlabeledPool
from kdpl.data.sampling import generator
from kdpl.errors import DataError

# what is held out: a share of the images, and between which numbers
_SHARE, _FEWEST, _MOST = 0.05, 100, 5000


def draw_unseen(pool: UnlabeledPool, labeled: Iterable[str]) -> Indices:
    """Draw 5 % of the images that would be distilled on, from 100 to 5,000, by the pool's seed.

    ``labeled`` images are not drawn, under any name. Returns indices, rising. A DataError if it
    would be more than half of the images.
    """
    images, known = len(pool.targeted), frozenset(places(Names.of(labeled)))
    wanted = min(max(round(_SHARE * images), _FEWEST), _MOST)

    # enough of them even if all labelled ones are among the first
    drawn = generator(pool.seed, "unseen").permutation(pool.targeted)[: wanted + len(known)]
    unseen = drawn[[place not in known for place in places(pool.images.take(drawn))]][:wanted]
    if 2 * wanted > images or len(unseen) < wanted:
        raise DataError(
            f"the pool has {images} images, too few to hold {wanted} without a label out of "
            "distillation, at most half of them: add unlabelled images, or leave "
            "kdpl.fidelity.Fidelity out of trainer.callbacks"
        )
    return np.sort(unseen)
