"""Test accuracies and their differences, with 95 % intervals over images and seeds."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from scipy.stats import t as student_t

from kdpl.errors import ArtifactError
from kdpl.metrics import ACC, BASE_ACC, HM, NOVEL_ACC
from kdpl.report.run_folder import Run, Stage, test_of

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

Scores = dict[str, Floats]
"""Scores of N images [N] by key of ``ACCURACY_COLUMNS``; their mean is the accuracy."""

_LEVEL = 0.95


class Accuracy(NamedTuple):
    """Share of correctly classified images, or a difference of shares, with its 95 % interval."""

    value: float
    interval: Interval


def scores_of(run: Run, stage: Stage) -> Scores:
    """Score the test images of a stage; an ArtifactError if the test is missing or incomplete."""
    predictions, num_base = stage.predictions, run.vectors.num_base
    scores = {ACC: np.array([p.correct for p in predictions], float)}
    if num_base is None:
        return scores
    if any(p.half_prediction_number is None for p in predictions):
        raise ArtifactError(
            f"{stage.folder} has no predictions among the base or the novel classes alone, test it "
            f"again: {test_of(stage.folder)}"
        )
    correct = np.array([p.half_prediction_number == p.label_number for p in predictions], float)
    is_base = np.array([p.label_number < num_base for p in predictions])
    halves = {BASE_ACC: correct[is_base], NOVEL_ACC: correct[~is_base]}
    if not all(half.size for half in halves.values()):
        return scores | {key: half for key, half in halves.items() if half.size}
    # the harmonic mean h, linearised in the images: h + dh/db (N / N_b) (x - b) for a base image,
    # and the same with n for a novel image
    b, n = (half.mean() for half in halves.values())
    total = b + n or 1.0
    slopes = np.where(is_base, n**2 / is_base.mean(), b**2 / (~is_base).mean()) * 2 / total**2
    mean = 2 * b * n / total + slopes * (correct - np.where(is_base, b, n))
    return {**scores, **halves, HM: mean}


def accuracy_of(key: str, scores: Floats) -> Accuracy:
    """Return the mean of scores [S, N] of S seeds with its interval.

    The interval is Wilson's for one seed, except for ``HM``, else from ``paired_difference``.
    """
    if len(scores) == 1 and key != HM:
        return Accuracy(float(scores.mean()), wilson(round(scores.sum()), scores.size))
    mean = paired_difference(np.zeros((1, scores.shape[1])), scores)
    low, high = mean.interval
    return Accuracy(mean.value, (max(low, 0.0), min(high, 1.0)))


def wilson(correct: int, images: int, level: float = _LEVEL) -> Interval:
    """Return Wilson's score interval of the share of correct images (JASA 22, 1927)."""
    interval = binomtest(correct, images).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def paired_difference(first: Floats, second: Floats, same_seeds: bool = False) -> Accuracy:
    """Return the mean of second scores [S, N] minus the mean of first scores [R, N].

    Both score the same images. Images and seeds are two samples; their squared standard errors add
    up: the error of the images' differences, averaged over seeds, and the error of the seeds'
    differences, averaged over images. The interval is Student's, with Welch's degrees of freedom
    (Biometrika 34, 1947). With one seed it is over the images alone. With ``same_seeds``, both have
    the same seeds in the same order, and seeds are paired as well.
    """
    by_image = second.mean(axis=0) - first.mean(axis=0)
    by_seed = [first.mean(axis=1), second.mean(axis=1)]
    if same_seeds:
        by_seed = [(second - first).mean(axis=1)]
    # one seed has no variance
    samples = [sample for sample in (by_image, *by_seed) if len(sample) > 1]
    squares = np.array([sample.var(ddof=1) / len(sample) for sample in samples])
    mean, total = float(by_image.mean()), squares.sum()
    if not total:
        # so many equal images show only that few others differ
        margin = 1 - (1 - _LEVEL) ** (1 / len(by_image))
        return Accuracy(mean, (mean - margin, mean + margin))
    freedom = total**2 / (squares**2 / [len(sample) - 1 for sample in samples]).sum()
    margin = float(student_t.ppf((1 + _LEVEL) / 2, freedom) * np.sqrt(total))
    return Accuracy(mean, (mean - margin, mean + margin))
