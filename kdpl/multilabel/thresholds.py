"""Thresholds of classes from held-out images: best F1, or a wanted precision or recall."""

import math
from typing import NamedTuple

import torch
from scipy.stats import beta
from torch import Tensor

from kdpl.confidence.held_out import CONFIDENCE
from kdpl.multilabel.metrics import DEFAULT


class Threshold(NamedTuple):
    """The threshold of a class, a float32 number, and if need be why it is not what was wanted."""

    value: float
    problem: str | None = None


def choose(
    logits: Tensor,
    targets: Tensor,
    precision: float | None = None,
    recall: float | None = None,
) -> list[Threshold]:
    """Choose a threshold for each class from logits and labels, 0 or 1, of N images, [N, C] both.

    A class without an image gets 0.5. A threshold is between two probabilities of held-out images,
    so that rounding does not matter. Without a wanted share, F1 is as large as possible.

    A wanted share is kept with ``CONFIDENCE`` over the draw of the images. With a ``precision``,
    thresholds are tested from those that accept few images on, each until a
    Clopper-Pearson bound is below it, and the errors are shared by as many starts (the multi-start
    fixed-sequence testing of arXiv 2110.01052): which numbers of images are tested does not depend
    on labels. With a wanted ``recall``, the threshold accepts the fewest images of the
    class whose share among all of them has a bound that reaches it.
    """
    chosen = []
    for probabilities, has in zip(
        logits.float().sigmoid().cpu().T, targets.bool().cpu().T, strict=True
    ):
        order = probabilities.argsort(descending=True, stable=True)
        falling, own = probabilities[order], has[order]
        if not own.any():
            chosen.append(Threshold(DEFAULT, "no held-out image has it"))
        elif precision is not None:
            chosen.append(_for_precision(falling, own, precision))
        elif recall is not None:
            chosen.append(_for_recall(falling, own, recall))
        else:
            counts = torch.tensor(_counts(falling))
            scores = 2 * own.cumsum(0)[counts - 1] / (counts + own.sum())
            best = int(counts[scores.max(dim=0).indices])
            chosen.append(Threshold(_between(falling, best)))
    return chosen


def of_expected_counts(logits: Tensor) -> list[float]:
    """Choose a threshold for each class from logits of N unlabelled images, [N, C].

    As many of these images have the class as its probabilities add up to, and at least one.
    """
    falling = logits.float().sigmoid().cpu().sort(dim=0, descending=True).values
    counts = falling.sum(dim=0).round().clamp(min=1).int().tolist()
    return [_between(falling[:, c], count) for c, count in enumerate(counts)]


def _for_precision(falling: Tensor, own: Tensor, wanted: float) -> Threshold:
    hits, counts = own.cumsum(0).tolist(), _counts(falling)

    # so few images show it if all are right; twice as many, and so on
    least = math.ceil(math.log(1 - CONFIDENCE) / math.log(wanted))
    wide = [least << doubled for doubled in range(32) if least << doubled <= len(own)]
    starts = sorted({next(i for i, count in enumerate(counts) if count >= n) for n in wide})
    starts = starts or [len(counts) - 1]

    # each start has its part of the errors, and leads on until a bound is too low
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

    best = max(bounds, key=lambda count: (bounds[count], count))
    return Threshold(
        _between(falling, best),
        f"no threshold shows a precision of {wanted:.3g}, the best shows {bounds[best]:.3g}",
    )


def _for_recall(falling: Tensor, own: Tensor, wanted: float) -> Threshold:
    found = torch.nonzero(own).flatten()
    number = len(found)
    bounds = [_lower(hits, number, CONFIDENCE) for hits in range(1, number + 1)]
    hits = next((k for k, bound in enumerate(bounds, start=1) if bound >= wanted), number)
    problem = None
    if bounds[hits - 1] < wanted:
        problem = (
            f"its {number} held-out images do not show a recall of {wanted:.3g}, the best is "
            f"{bounds[-1]:.3g}"
        )
    # as many images as have at least the probability of the last of these
    count = int((falling >= falling[found[hits - 1]]).sum())
    return Threshold(_between(falling, count), problem)


def _counts(falling: Tensor) -> list[int]:
    """The numbers of images that a threshold can accept, of falling probabilities."""
    ends = torch.nonzero(falling[1:] < falling[:-1]).flatten() + 1
    return [*ends.tolist(), len(falling)]


def _between(falling: Tensor, count: int) -> float:
    """A float32 threshold that accepts the first ``count`` images alone."""
    last = float(falling[count - 1])
    below = float(falling[count]) if count < len(falling) else 0.0
    middle = float(torch.tensor((last + below) / 2))
    return middle if below < middle <= last else last


def _lower(hits: int, count: int, confidence: float) -> float:
    """The one-sided Clopper-Pearson bound of a share, of which so many were seen."""
    return 0.0 if hits == 0 else float(beta.ppf(1 - confidence, hits, count - hits + 1))
