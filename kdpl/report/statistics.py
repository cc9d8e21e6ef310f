"""The report's arithmetic: intervals of accuracies, calibration, and the temperature that mends it."""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

LEVEL = 0.95
NUM_BINS = 15
TEMPERATURES = (0.05, 20.0)
"""Between which a temperature is looked for."""

_DRAWS, _SEED = 20_000, 0


def wilson(right: int, images: int) -> Interval:
    """Wilson's score interval, at 95 %, of the share of images that are right (JASA 22, 1927).

    Args:
        right: How many images were answered rightly.
        images: Of how many, at least 1.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share = right / images
    centre = share + z * z / (2 * images)
    half = z * sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    scale = 1 + z * z / images
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def bootstrap_harmonic_mean(base: tuple[int, int], novel: tuple[int, int]) -> Interval:
    """Bootstrap interval, at 95 %, of the harmonic mean of two accuracies: base and novel images are drawn again.

    Drawing n images again, of which r are right, gives Binomial(n, r/n) right ones, and is drawn as such.

    Args:
        base: Right ones, and number of images of base classes.
        novel: The same of novel classes.
    """
    draw = np.random.default_rng(_SEED)
    b, n = (draw.binomial(images, right / images, _DRAWS) / images for right, images in (base, novel))
    total = b + n
    return _percentiles(np.where(total > 0, 2 * b * n / np.where(total > 0, total, 1), 0.0))


def bootstrap_difference(first_right: npt.NDArray[np.bool_], second_right: npt.NDArray[np.bool_]) -> Interval:
    """Bootstrap interval, at 95 %, of how much higher the second accuracy is: pairs of answers are drawn again.

    Args:
        first_right: Whether the first was right on each image, [N].
        second_right: Whether the second was right on the same image, [N].
    """
    images = len(first_right)
    gained, lost = int((second_right & ~first_right).sum()), int((first_right & ~second_right).sum())
    shares = [gained / images, lost / images, (images - gained - lost) / images]
    drawn = np.random.default_rng(_SEED).multinomial(images, shares, _DRAWS)
    return _percentiles((drawn[:, 0] - drawn[:, 1]) / images)


def _percentiles(values: Floats) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Bin:
    """Answers of about the same confidence.

    Attributes:
        low: Lower bound of the confidences, not included.
        high: Upper bound, included.
        images: How many answers.
        accuracy: Share of them that is right; 0 where there are none.
        confidence: Their mean confidence; 0 where there are none.
    """

    low: float
    high: float
    images: int
    accuracy: float
    confidence: float


def reliability(confidences: Floats, right: npt.NDArray[np.bool_]) -> list[Bin]:
    """Sort answers into 15 bins of equal width by their confidence (Guo et al., arXiv 1706.04599, section 2).

    Args:
        confidences: Softmax of each answer, in (0, 1], [N].
        right: Whether it is right, [N].
    """
    edges = np.linspace(0, 1, NUM_BINS + 1)
    # bin i holds edges[i] < confidence <= edges[i + 1]
    number = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, NUM_BINS - 1)
    bins = []
    for i in range(NUM_BINS):
        inside = number == i
        count = int(inside.sum())
        accuracy = float(right[inside].mean()) if count else 0.0
        confidence = float(confidences[inside].mean()) if count else 0.0
        bins.append(Bin(float(edges[i]), float(edges[i + 1]), count, accuracy, confidence))
    return bins


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: the mean distance of accuracy and confidence over all answers."""
    images = sum(b.images for b in bins)
    return sum(b.images * abs(b.accuracy - b.confidence) for b in bins) / images


def fit_temperature(logits: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Find the temperature under which labels are likeliest (Guo et al., arXiv 1706.04599, section 4.2).

    The mean negative log-likelihood is convex in β = 1/T with the slope mean(E_p[z] - z_label), p = softmax(βz): its
    zero is found by bisection.

    Args:
        logits: [N, C], of images that neither training nor the test have.
        labels: [N].

    Returns:
        The temperature, between the bounds of ``TEMPERATURES``.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    labelled = shifted[np.arange(len(labels)), labels].mean()

    def slope(temperature: float) -> float:
        weights = np.exp(shifted / temperature)
        expected = (weights * shifted).sum(axis=1) / weights.sum(axis=1)
        return float(expected.mean() - labelled)

    low, high = TEMPERATURES
    # the slope falls as the temperature rises
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    for _ in range(60):
        middle = sqrt(low * high)
        if slope(middle) > 0:
            low = middle
        else:
            high = middle
    return sqrt(low * high)
