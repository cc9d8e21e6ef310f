"""Unlabelled images that are held out of distillation."""

from collections.abc import Iterable

from kdpl.data.names import Names, places
from kdpl.data.pool import UnlabeledPool
from kdpl.data.sampling import generator
from kdpl.errors import DataError
from kdpl.runtime.messages import inform

# share of images to hold out, and the smallest and largest number
_SHARE, FEWEST, _MOST = 0.05, 100, 5000


def hold_out(pool: UnlabeledPool, labeled: Iterable[str]) -> UnlabeledPool:
    """Hold 5 % of the images, from 100 to 5,000 drawn by the seed, out of distillation.

    ``labeled`` images are not drawn, under any name. A DataError if it would be more than half of
    the images.
    """
    labeled_paths = frozenset(places(Names.of(labeled)))
    images = len(pool.train)
    wanted = min(max(round(_SHARE * images), FEWEST), _MOST)

    # enough images even if all labelled images are drawn first
    order = generator(pool.seed, "unseen").permutation(pool.train)
    drawn = order[: wanted + len(labeled_paths)]
    unlabeled = [path not in labeled_paths for path in places(pool.images.take(drawn))]
    unseen = drawn[unlabeled][:wanted]
    if 2 * wanted > images or len(unseen) < wanted:
        raise too_small(images, wanted)
    inform(f"fidelity: {len(unseen)} unlabelled images are held out of distillation")
    return pool.holding_out(unseen)


def too_small(images: int, wanted: int) -> DataError:
    """Return the error for a pool of which so many images cannot be held out."""
    return DataError(
        f"the pool has {images} images, too few to hold {wanted} without a label out of "
        "distillation, at most half of them: add unlabelled images, or leave "
        "kdpl.targets.fidelity.Fidelity out of trainer.callbacks"
    )
