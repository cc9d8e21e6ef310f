"""Two samples of images compared by permutations: are new images like those of the pool?"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import betabinom, rankdata
from torch import Tensor

from kdpl.confidence.drift.image_sample import ImageSample
from kdpl.confidence.unknown import usual_rank

Floats = npt.NDArray[np.float64]

PERMUTED = ("rejected", "classes", "distance")
"""Shares of rejected images, frequencies of predicted classes, feature distances to the pool."""
QUESTIONS = (*PERMUTED, "unknown")
"""And the share of images with a high score of being none of the classes."""

QUANTILE = 0.05
"""Share of the pool that is rejected where no threshold is given."""

PERMUTATIONS = 1999
LEAST_RATE = len(QUESTIONS) / (PERMUTATIONS + 1)
"""Smallest p-value that there can be, and so the smallest rate of false alarms."""

_NEAR = 32
_DECIMALS = 9  # sums of the same numbers in another order are equal


class Comparison(NamedTuple):
    """P-values of each question and of each class, adjusted for the number of them."""

    questions: dict[str, float]
    classes: list[float]

    def with_unknown(self, p_value: float) -> "Comparison":
        """Add the question asked of other images than the permuted, with its share of the rate.

        Bonferroni: each of the questions has the same share, and the permuted ones keep theirs in
        common.
        """
        count = len(self.questions) + 1
        share = count / (count - 1)
        questions = {name: min(1.0, share * each) for name, each in self.questions.items()}
        return Comparison({**questions, "unknown": min(1.0, count * p_value)}, self.classes)


def compare(
    pool: ImageSample,
    new: ImageSample,
    num_classes: int,
    rejected: npt.NDArray[np.bool_] | None = None,
) -> Comparison:
    """Compare N pool images and n new ones by random permutations of which image belongs to which.

    The statistics are, each larger for images less like the pool: the number of new images that are
    ``rejected``, bool [N + n], by default those with a score below the pool's ``least_sure``, of
    each permutation anew; the sum over classes of squared differences of predicted frequencies, on
    the scale of Anscombe's arcsine (Biometrika 35, 1948), on which those of rare and frequent
    classes vary alike; and the mean distance of new images to the nearest pool image, minus that of
    pool images to the nearest other one.

    If new images are exchangeable with the pool's, all arrangements are equally probable, and each
    p-value is valid for any number of images and classes (Phipson & Smyth, arXiv 1603.05766). The
    smallest one is compared with the smallest ones of the permutations (Westfall & Young, 1993),
    and the largest difference of a class with the largest ones: in at most a share α of such
    comparisons any question has a p-value of α or less, and so for the classes.
    """
    search, draw = _Nearest(torch.cat([pool.features, new.features])), np.random.default_rng(0)
    labels = torch.cat([pool.labels, new.labels]).numpy()
    scores = torch.cat([pool.scores, new.scores]).numpy()
    given = np.arange(len(labels)) >= len(pool)
    statistics, differences = [], []
    for number in range(PERMUTATIONS + 1):
        is_new = draw.permutation(given) if number else given
        among_new, among_pool = (
            _arcsine(np.bincount(labels[part], minlength=num_classes)) for part in (is_new, ~is_new)
        )
        difference, nearest = np.abs(among_new - among_pool), search.among(~is_new)
        distance = nearest[is_new].mean() - nearest[~is_new].mean()
        below = scores < least_sure(scores[~is_new]) if rejected is None else rejected
        statistics.append([below[is_new].sum(), np.square(difference).sum(), distance])
        differences.append(difference)
    p_values = _p_values(np.round(statistics, _DECIMALS))
    by_class = np.round(differences, _DECIMALS)
    adjusted = (p_values.min(axis=1)[:, None] <= p_values[0]).mean(axis=0)
    of_classes = (by_class.max(axis=1)[:, None] >= by_class[0]).mean(axis=0)
    return Comparison(dict(zip(PERMUTED, adjusted.tolist(), strict=True)), of_classes.tolist())


def least_sure(scores: npt.NDArray[np.float32]) -> float:
    """Threshold that a share ``QUANTILE`` of the pool's scores [N] are below."""
    return float(np.quantile(scores, QUANTILE))


def above_usual(above: int, images: int, known: int) -> float:
    """Compute the p-value of ``above`` or more new images above the usual score of known ones.

    The usual score is the one of ``usual_rank`` in all ``known`` images. If all are exchangeable,
    the number is beta-binomial, whatever the scores' distribution.
    """
    rank = usual_rank(known)
    return float(betabinom.sf(above - 1, images, known + 1 - rank, rank))


def distances_to(pool: Tensor, features: Tensor) -> Floats:
    """Compute the distance [n] of features [n, D] to the nearest of the pool's features [N, D]."""
    parts = torch.split(features, 1000)
    return np.concatenate([_distances(some, pool).min(axis=1) for some in parts])


def distances_within(pool: Tensor) -> Floats:
    """Distance of each of N images' features [N, D] to the nearest of the others; returns [N]."""
    return _Nearest(pool).among(np.ones(len(pool), np.bool_))


def _distances(first: Tensor, second: Tensor) -> Floats:
    distances: Floats = torch.cdist(first.double(), second.double()).numpy()
    return distances


class _Nearest:
    """Finds each image's nearest other one among any part of T images, from features [T, D]."""

    def __init__(self, features: Tensor) -> None:
        self.distances = _distances(features, features)
        np.fill_diagonal(self.distances, np.inf)
        self.order = np.argsort(self.distances, axis=1)[:, :_NEAR]

    def among(self, part: npt.NDArray[np.bool_]) -> Floats:
        """Distances [T] to the nearest image for which ``part``, bool [T], is true."""
        in_part, every = part[self.order], np.arange(len(part))
        nearest: Floats = self.distances[every, self.order[every, in_part.argmax(axis=1)]]
        far = ~in_part.any(axis=1)
        if far.any():
            nearest[far] = self.distances[far][:, part].min(axis=1)
        return nearest


def _arcsine(counts: npt.NDArray[np.int64]) -> Floats:
    angles: Floats = np.arcsin(np.sqrt((counts + 0.375) / (counts.sum() + 0.75)))
    return angles


def _p_values(statistics: Floats) -> Floats:
    """Share of the rows that have at least the value of each, by columns; both [P, S]."""
    smaller: Floats = rankdata(statistics, method="min", axis=0) - 1
    return 1 - smaller / len(statistics)
