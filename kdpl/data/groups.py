"""Groups of near-copies, such as the frames of a burst: whole in folds, one image each in bounds.

All estimates from labelled images divide and count them here.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from kdpl.data.names import Indices
from kdpl.data.sampling import generator
from kdpl.runtime.messages import inform

FOLDS = 5
"""Largest number of folds."""


def group_numbers(sources: Iterable[str], groups: Mapping[str, str]) -> Indices:
    """Number the groups of N images, int64 [N]; an image without a group is a group by itself."""
    numbers: dict[str, int] = {}
    rows = (numbers.setdefault(groups.get(source, source), len(numbers)) for source in sources)
    return np.fromiter(rows, np.int64)


def one_of_each(sources: Sequence[str], groups: Mapping[str, str], seed: int) -> Indices:
    """Draw one image of each group by a seed; return their sorted positions, and print how many."""
    order = generator(seed, "groups").permutation(len(sources))
    numbers = group_numbers(sources, groups)[order]
    drawn = np.sort(order[np.unique(numbers, return_index=True)[1]])
    if len(drawn) < len(sources):
        inform(f"{len(drawn)} of {len(sources)} held-out images count, one of each group")
    return drawn


def folds(labels: Indices, groups: Indices) -> Indices:
    """Divide labelled images into up to ``FOLDS`` folds of whole groups, each class evenly.

    In the order of the images, each group goes to the fold with the smallest share of its classes,
    the first one on a tie. If a class is in one fold only, its images are put in no fold, as
    nothing could learn them while they are held out.

    Args:
        labels: The label of each image, int64 [N].
        groups: The group of each image, int64 [N].

    Returns:
        The fold of each image, int64 [N], −1 for none.
    """
    # number classes and groups from 0, with the images of each group
    classes = np.unique(labels, return_inverse=True)[1]
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    members = np.split(group.argsort(kind="stable"), np.bincount(group).cumsum()[:-1])
    # assign group by group
    totals = np.bincount(classes)
    counts = np.zeros((FOLDS, len(totals)), np.int64)
    fold_of = np.empty(len(labels), np.int64)
    for number in first.argsort():
        rows = members[number]
        fold_of[rows] = (counts[:, classes[rows]] / totals[classes[rows]]).sum(axis=1).argmin()
        np.add.at(counts, (fold_of[rows], classes[rows]), 1)
    fold_of[counts[fold_of, classes] == totals[classes]] = -1
    return fold_of
