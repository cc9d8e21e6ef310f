"""Thresholds of classes from held-out images: best F1, or a wanted precision or recall."""

import math
from dataclasses import dataclass

import torch
from scipy.stats import beta
from torch import Tensor

from kdpl.multilabel.metrics import DEFAULT

CONFIDENCE = 0.95
"""Probability, over the draw of the held-out images, with which a precision or recall is kept."""


@dataclass(frozen=True)
class Wanted:
    """What thresholds are for.

    Attributes:
        precision: Share of an image's predictions of a class that shall be right; None: any.
        recall: Share of a class's images that shall be found; None: any. Of both at most one is
            given; with neither, F1 is as large as possible.
        confidence: Probability with which it is kept.
    """

    precision: float | None = None
    recall: float | None = None
    confidence: float = CONFIDENCE


@dataclass(frozen=True)
class Threshold:
    """The threshold of a class, a float32 number, and if need be why it is not what was wanted."""

    value: float
    problem: str | None = None


def choose(logits: Tensor, targets: Tensor, wanted: Wanted = Wanted()) -> list[Threshold]:
    """Choose a threshold for each class from logits and labels, 0 or 1, of N images, [N, C] both.

    A class without an image gets 0.5. A threshold is between two probabilities of held-out images,
    so that rounding does not matter.

    With a wanted ``precision``, thresholds are tested from those that accept few images on, each
    until a Clopper-Pearson bound is below it, and the errors are shared by as many starts (the
    multi-start fixed-sequence testing of arXiv 2110.01052): which numbers of images are tested does
    not depend on labels. With a wanted ``recall``, the threshold accepts the fewest images of the
    class whose share among all of them has a bound that reaches it.
    """
    probabilities = logits.float().sigmoid().cpu()
    has = targets.bool().cpu()
    return [_of_class(probabilities[:, c], has[:, c], wanted) for c in range(logits.shape[1])]


def of_expected_counts(logits: Tensor) -> list[float]:
    """Choose a threshold for each class from logits of N unlabelled images, [N, C].

    As many of these images have the class as its probabilities add up to, and at least one.
    """
    falling = logits.float().sigmoid().cpu().sort(dim=0, descending=True).values
    counts = falling.sum(dim=0).round().clamp(min=1).int().tolist()
    return [_between(falling[:, c], count) for c, count in enumerate(counts)]


def _of_class(probabilities: Tensor, has: Tensor, wanted: Wanted) -> Threshold:
    if not has.any():
        return Threshold(DEFAULT, "no held-out image has it")
    order = probabilities.argsort(descending=True, stable=True)
    falling, own = probabilities[order], has[order]
    if wanted.precision is not None:
        return _for_precision(falling, own, wanted.precision, wanted.confidence)
    if wanted.recall is not None:
        return _for_recall(falling, own, wanted.recall, wanted.confidence)

    # accepting the first k images, of which several with the same probability are accepted at once
    counts = torch.arange(1, len(own) + 1)
    scores = 2 * own.cumsum(0) / (counts + own.sum())
    ends = torch.cat([falling[1:] < falling[:-1], torch.tensor([True])])
    best = int(torch.where(ends, scores, -1.0).max(dim=0).indices)
    return Threshold(_between(falling, best + 1))


def _for_precision(falling: Tensor, own: Tensor, wanted: float, confidence: float) -> Threshold:
    hits, counts = own.cumsum(0).tolist(), _counts(falling)

    # so few images show it if all are right; twice as many, and so on
    least = math.ceil(math.log(1 - confidence) / math.log(wanted))
    wide = [least << doubled for doubled in range(32) if least << doubled <= len(own)]
    starts = sorted({next(i for i, count in enumerate(counts) if count >= n) for n in wide})
    starts = starts or [len(counts) - 1]

    # each start has its part of the errors, and leads on until a bound is too low
    level = 1 - (1 - confidence) / len(starts)
    bounds = {counts[i]: _lower(hits[counts[i] - 1], counts[i], level) for i in starts}
    shown = list[int]()
    for i in starts:
        for count in counts[i:]:
            if _lower(hits[count - 1], count, level) < wanted:
                break
            shown.append(count)
    if shown:
        return Threshold(_between(falling, max(shown)))

    best = max(bounds, key=lambda count: (bounds[count], count))
    return Threshold(
        _between(falling, best),
        f"no threshold shows a precision of {wanted:.3g}, the best shows {bounds[best]:.3g}",
    )


def _for_recall(falling: Tensor, own: Tensor, wanted: float, confidence: float) -> Threshold:
    found = torch.nonzero(own).flatten()
    number = len(found)
    bounds = [_lower(hits, number, confidence) for hits in range(1, number + 1)]
    hits = next((k for k, bound in enumerate(bounds, start=1) if bound >= wanted), number)
    # as many images as have at least the probability of the last of these
    count = int((falling >= falling[found[hits - 1]]).sum())
    if bounds[hits - 1] >= wanted:
        return Threshold(_between(falling, count))
    return Threshold(
        _between(falling, count),
        f"its {number} held-out images do not show a recall of {wanted:.3g}, the best is "
        f"{bounds[-1]:.3g}",
    )


def _counts(falling: Tensor) -> list[int]:
    """The numbers of images that a threshold can accept, of falling probabilities."""
    last = len(falling)
    ends = torch.nonzero(falling[1:] < falling[:-1]).flatten() + 1
    return [*ends.tolist(), last]


def _between(falling: Tensor, count: int) -> float:
    """A float32 threshold that accepts the first ``count`` images alone."""
    last = float(falling[count - 1])
    below = float(falling[count]) if count < len(falling) else 0.0
    middle = float(torch.tensor((last + below) / 2))
    return middle if below < middle <= last else last


def _lower(hits: int, count: int, confidence: float) -> float:
    """The one-sided Clopper-Pearson bound of a share, of which so many were seen."""
    return 0.0 if hits == 0 else float(beta.ppf(1 - confidence, hits, count - hits + 1))
