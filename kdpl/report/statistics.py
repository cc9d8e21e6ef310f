"""Intervals of accuracies, calibration, and the temperature that improves it."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import binomtest

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Interval = tuple[float, float]

LEVEL = 0.95
NUM_BINS = 15
TEMPERATURES = (0.05, 20.0)
"""Bounds of a fitted temperature."""

_DRAWS, _SEED = 20_000, 0


def wilson(correct: int, images: int) -> Interval:
    """Wilson's score interval, at 95 %, of the share of images classified correctly (JASA 22, 1927)."""
    interval = binomtest(correct, images).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_harmonic_mean(base: tuple[int, int], novel: tuple[int, int]) -> Interval:
    """Bootstrap interval, at 95 %, of the harmonic mean of two accuracies, each given as correct and all images."""
    # resampling n images of which r are correct gives Binomial(n, r/n) correct ones, at once for any n
    draw = np.random.default_rng(_SEED)
    b, n = (draw.binomial(images, correct / images, _DRAWS) / images for correct, images in (base, novel))
    total = b + n
    return _percentiles(np.where(total > 0, 2 * b * n / np.where(total > 0, total, 1), 0.0))


def bootstrap_difference(first: Bools, second: Bools) -> Interval:
    """Bootstrap interval, at 95 %, of the second accuracy minus the first; both [N], True for a correct image."""
    images = len(first)
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    shares = [gained / images, lost / images, (images - gained - lost) / images]
    drawn = np.random.default_rng(_SEED).multinomial(images, shares, _DRAWS)
    return _percentiles((drawn[:, 0] - drawn[:, 1]) / images)


def _percentiles(values: Floats) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


class Bin(NamedTuple):
    """Predictions with ``low`` < confidence <= ``high``; an empty bin has accuracy and mean confidence 0."""

    low: float
    high: float
    images: int
    accuracy: float
    confidence: float


def reliability(confidences: Floats, correct: Bools) -> list[Bin]:
    """Sort predictions [N] into 15 bins by confidence in (0, 1] (Guo et al., arXiv 1706.04599, section 2)."""
    edges = np.linspace(0, 1, NUM_BINS + 1)
    # bin i holds edges[i] < confidence <= edges[i + 1]; torchmetrics has a bin of its own for a confidence of 1
    number = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, NUM_BINS - 1)
    bins = []
    for i in range(NUM_BINS):
        inside = number == i
        count = int(inside.sum())
        means = (float(values[inside].mean()) if count else 0.0 for values in (correct, confidences))
        bins.append(Bin(float(edges[i]), float(edges[i + 1]), count, *means))
    return bins


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: mean distance of accuracy and confidence over all predictions."""
    return sum(b.images * abs(b.accuracy - b.confidence) for b in bins) / sum(b.images for b in bins)


def fit_temperature(logits: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Find the temperature that maximises the likelihood of labels [N] (Guo et al., arXiv 1706.04599, section 4.2).

    The logits [N, C] are of images that neither training nor the test used. Returns a bound of ``TEMPERATURES`` if
    there is no maximum between them.
    """
    # the mean negative log-likelihood is convex in β = 1/T with the slope mean(E_p[z] - z_label), p = softmax(βz)
    shifted = logits - logits.max(axis=1, keepdims=True)
    labelled = shifted[np.arange(len(labels)), labels].mean()

    def slope(log_temperature: float) -> float:
        weights = np.exp(shifted / np.exp(log_temperature))
        expected = (weights * shifted).sum(axis=1) / weights.sum(axis=1)
        return float(expected.mean() - labelled)

    low, high = (float(np.log(t)) for t in TEMPERATURES)
    # the slope falls as the temperature rises
    if slope(low) <= 0:
        return TEMPERATURES[0]
    if slope(high) >= 0:
        return TEMPERATURES[1]
    return float(np.exp(brentq(slope, low, high, xtol=1e-12)))
