"""Permutation tests of two samples of images: do new images differ from the pool?"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy
import torch
from torch import Tensor

from kdpl.confidence.drift.image_sample import ImageSample
from kdpl.confidence.unknown import usual_rank

Floats = npt.NDArray[np.float64]

PERMUTED = ("rejected", "classes", "distance")
"""Shares of rejected images, frequencies of predicted classes, feature distances to the pool.

A further question, ``unknown``, is the share of images with a high score of being none of the
classes.
"""

QUANTILE = 0.05
"""Share of the pool that is rejected by default."""

PERMUTATIONS = 1999
LEAST_RATE = (len(PERMUTED) + 1) / (PERMUTATIONS + 1)
"""Smallest possible p-value, and so the smallest rate of false alarms."""

_NEAR = 32
_DECIMALS = 9  # the order of a sum must not matter


class Comparison(NamedTuple):
    """P-values of questions and of classes, adjusted for their numbers."""

    questions: dict[str, float]
    classes: list[float]

    def with_unknown(self, p_value: float) -> "Comparison":
        """Add the question on the score, which is not tested by permutations.

        Bonferroni: all questions have equal shares of the rate; the permuted ones pool theirs.
        """
        count = len(self.questions) + 1
        share = count / (count - 1)
        questions = {name: min(1.0, share * value) for name, value in self.questions.items()}
        return Comparison({**questions, "unknown": min(1.0, count * p_value)}, self.classes)


def compare(
    pool: ImageSample, new: ImageSample, num_classes: int, threshold: float | None = None
) -> Comparison:
    """Compare N pool images and n new ones by random permutations of pool and new.

    Three statistics are larger for images less like the pool: the number of new images with a score
    below ``threshold``, by default ``least_sure`` of each permutation's pool; the sum over classes
    of squared differences of predicted frequencies, on the scale of Anscombe's arcsine (Biometrika
    35, 1948), where frequencies of rare and common classes have the same variance; and the mean
    distance of new images to the nearest pool image, minus the mean distance of pool images to the
    nearest other pool image.

    If new images are exchangeable with the pool's, all permutations are equally probable, and each
    p-value is valid for any number of images and classes (Phipson & Smyth, arXiv 1603.05766). The
    smallest p-value is compared with the smallest of each permutation (Westfall & Young, 1993), and
    the difference of a class with the largest of each permutation: in at most a share α of such
    comparisons any question has a p-value of α or less, and the same holds for the classes.
    """
    features = torch.cat([pool.features, new.features])
    distances = _distances(features, features)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1)[:, :_NEAR]
    labels = torch.cat([pool.labels, new.labels]).numpy()
    scores = torch.cat([pool.scores, new.scores]).numpy()
    observed = np.arange(len(labels)) >= len(pool)

    draw, statistics, differences = np.random.default_rng(0), [], []
    for number in range(PERMUTATIONS + 1):
        is_new = draw.permutation(observed) if number else observed
        counts = np.array(
            [np.bincount(labels[part], minlength=num_classes) for part in (is_new, ~is_new)]
        )
        angles = np.arcsin(np.sqrt((counts + 0.375) / (counts.sum(axis=1, keepdims=True) + 0.75)))
        difference, nearest = np.abs(angles[0] - angles[1]), _nearest(distances, order, ~is_new)
        distance = nearest[is_new].mean() - nearest[~is_new].mean()
        least = least_sure(scores[~is_new]) if threshold is None else threshold
        statistics.append([(scores[is_new] < least).sum(), np.square(difference).sum(), distance])
        differences.append(difference)

    smaller = scipy.stats.rankdata(np.round(statistics, _DECIMALS), method="min", axis=0) - 1
    p_values = 1 - smaller / len(statistics)
    by_class = np.round(differences, _DECIMALS)
    adjusted = (p_values.min(axis=1)[:, None] <= p_values[0]).mean(axis=0)
    of_classes = (by_class.max(axis=1)[:, None] >= by_class[0]).mean(axis=0)
    return Comparison(dict(zip(PERMUTED, adjusted.tolist(), strict=True)), of_classes.tolist())


def least_sure(scores: npt.NDArray[np.float32]) -> float:
    """Return the threshold with a share ``QUANTILE`` of the pool's scores [N] below it."""
    return float(np.quantile(scores, QUANTILE))


def above_usual(above: int, images: int, references: int) -> float:
    """Return the p-value of ``above`` or more new images above the usual score of references.

    The usual score has the rank ``usual_rank`` in the reference images. If all images are
    exchangeable, the number is beta-binomial for any distribution of the scores.
    """
    rank = usual_rank(references)
    return float(scipy.stats.betabinom.sf(above - 1, images, references + 1 - rank, rank))


def distances_to(pool: Tensor, features: Tensor) -> Floats:
    """Return distances [n] of features [n, D] to the nearest of the pool's features [N, D]."""
    chunks = torch.split(features, 1000)
    return np.concatenate([_distances(chunk, pool).min(axis=1) for chunk in chunks])


def _distances(first: Tensor, second: Tensor) -> Floats:
    distances: Floats = torch.cdist(first.double(), second.double()).numpy()
    return distances


def _nearest(
    distances: Floats, order: npt.NDArray[np.int64], part: npt.NDArray[np.bool_]
) -> Floats:
    """Return the distances [T] to the nearest image in a part, bool [T], given all [T, T].

    ``order`` has the nearest few images of each, [T, n].
    """
    # among the nearest few, or among all if none of them is in the part
    in_part, every = part[order], np.arange(len(part))
    nearest: Floats = distances[every, order[every, in_part.argmax(axis=1)]]
    far = ~in_part.any(axis=1)
    nearest[far] = distances[far][:, part].min(axis=1)
    return nearest
