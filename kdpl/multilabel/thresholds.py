"""Thresholds of classes from held-out images, for best F1 or a wanted precision or recall."""

import math
from typing import NamedTuple

import torch
from scipy.stats import beta
from torch import Tensor

from kdpl.confidence.held_out import CONFIDENCE
from kdpl.multilabel.metrics import DEFAULT


class Threshold(NamedTuple):
    """The threshold of a class, a float32 number, and why it is not as wanted, if so."""

    value: float
    problem: str | None = None


def choose(
    logits: Tensor,
    targets: Tensor,
    precision: float | None = None,
    recall: float | None = None,
) -> list[Threshold]:
    """Choose a threshold for each class from logits and labels, 0 or 1, of N images, both [N, C].

    A class without an image gets 0.5. A threshold lies between two probabilities of held-out
    images, so that rounding does not matter. By default, F1 is maximised.

    A wanted share holds with ``CONFIDENCE`` over the draw of the images. For a ``precision``,
    thresholds that accept more and more images are tested from several starts on, each until its
    Clopper-Pearson bound falls below the precision. The starts share the error probability
    (multi-start fixed-sequence testing, arXiv 2110.01052) and do not depend on labels. For a
    ``recall``, the threshold accepts the fewest images of the class whose share has a bound of at
    least the recall.
    """
    chosen = []
    for probabilities, has in zip(
        logits.float().sigmoid().cpu().T, targets.bool().cpu().T, strict=True
    ):
        order = probabilities.argsort(descending=True, stable=True)
        falling, is_hit = probabilities[order], has[order]
        if not is_hit.any():
            chosen.append(Threshold(DEFAULT, "no held-out image has it"))
        elif precision is not None:
            chosen.append(_for_precision(falling, is_hit, precision))
        elif recall is not None:
            chosen.append(_for_recall(falling, is_hit, recall))
        else:
            # F1 of each number of accepted images
            counts = torch.tensor(_counts(falling))
            scores = 2 * is_hit.cumsum(0)[counts - 1] / (counts + is_hit.sum())
            best = int(counts[scores.max(dim=0).indices])
            chosen.append(Threshold(_between(falling, best)))
    return chosen


def of_expected_counts(logits: Tensor) -> list[float]:
    """Choose a threshold for each class from logits [N, C] of unlabelled images.

    It accepts as many images as the class's probabilities add up to, and at least one.
    """
    falling = logits.float().sigmoid().cpu().sort(dim=0, descending=True).values
    counts = falling.sum(dim=0).round().clamp(min=1).int().tolist()
    return [_between(falling[:, c], count) for c, count in enumerate(counts)]


def _for_precision(falling: Tensor, is_hit: Tensor, wanted: float) -> Threshold:
    """Choose by precision, from falling probabilities and labels [N] in their order."""
    hits, counts = is_hit.cumsum(0).tolist(), _counts(falling)

    # starts: the fewest images that can show the precision, twice as many, and so on
    least = math.ceil(math.log(1 - CONFIDENCE) / math.log(wanted))
    wide = [least << doubled for doubled in range(32) if least << doubled <= len(is_hit)]
    starts = sorted({next(i for i, count in enumerate(counts) if count >= n) for n in wide})
    starts = starts or [len(counts) - 1]

    # each start has an equal part of the errors, and stops when its bound is too low
    level = 1 - (1 - CONFIDENCE) / len(starts)
    bounds = {counts[i]: _lower(hits[counts[i] - 1], counts[i], level) for i in starts}
    shown = list[int]()
    for i in starts:
        for count in counts[i:]:
            if _lower(hits[count - 1], count, level) < wanted:
                break
            shown.append(count)
    if shown:
        return Threshold(_between(falling, max(shown)))

    # else the start with the best bound
    best = max(bounds, key=lambda count: (bounds[count], count))
    return Threshold(
        _between(falling, best),
        f"no threshold shows a precision of {wanted:.3g}, the best shows {bounds[best]:.3g}",
    )


def _for_recall(falling: Tensor, is_hit: Tensor, wanted: float) -> Threshold:
    """Choose by recall, from falling probabilities and labels [N] in their order."""
    ranks = torch.nonzero(is_hit).flatten()
    number = len(ranks)
    bounds = [_lower(hits, number, CONFIDENCE) for hits in range(1, number + 1)]
    hits = next((k for k, bound in enumerate(bounds, start=1) if bound >= wanted), number)
    problem = None
    if bounds[hits - 1] < wanted:
        problem = (
            f"its {number} held-out images do not show a recall of {wanted:.3g}, the best is "
            f"{bounds[-1]:.3g}"
        )
    # all images with at least the probability of the last hit
    count = int((falling >= falling[ranks[hits - 1]]).sum())
    return Threshold(_between(falling, count), problem)


def _counts(falling: Tensor) -> list[int]:
    """Return the numbers of images that a threshold on falling probabilities can accept."""
    ends = torch.nonzero(falling[1:] < falling[:-1]).flatten() + 1
    return [*ends.tolist(), len(falling)]


def _between(falling: Tensor, count: int) -> float:
    """Return a float32 threshold that accepts only the first ``count`` images."""
    last = float(falling[count - 1])
    below = float(falling[count]) if count < len(falling) else 0.0
    middle = float(torch.tensor((last + below) / 2))
    return middle if below < middle <= last else last


def _lower(hits: int, count: int, confidence: float) -> float:
    """Return the one-sided lower Clopper-Pearson bound of the share ``hits / count``."""
    return 0.0 if hits == 0 else float(beta.ppf(1 - confidence, hits, count - hits + 1))
