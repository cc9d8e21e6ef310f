"""Thresholds of classes from held-out images, for best F1."""

import torch
from torch import Tensor

from kdpl.multilabel.metrics import DEFAULT


def choose(logits: Tensor, targets: Tensor) -> list[float]:
    """Choose the threshold of the best F1 for each class from N images, float32 numbers.

    ``logits`` and labels, 0 or 1, are [N, C]. A class without an image gets 0.5. A threshold lies
    between two probabilities of held-out images, so that rounding does not matter.
    """
    chosen = []
    for probabilities, has in zip(
        logits.float().sigmoid().cpu().T, targets.bool().cpu().T, strict=True
    ):
        order = probabilities.argsort(descending=True, stable=True)
        falling, is_hit = probabilities[order], has[order]
        if not is_hit.any():
            chosen.append(DEFAULT)
            continue
        # F1 of each number of accepted images
        counts = torch.tensor(_counts(falling))
        scores = 2 * is_hit.cumsum(0)[counts - 1] / (counts + is_hit.sum())
        best = int(counts[scores.max(dim=0).indices])
        chosen.append(_between(falling, best))
    return chosen


def of_expected_counts(logits: Tensor) -> list[float]:
    """Choose a threshold for each class from logits [N, C] of unlabelled images.

    It accepts as many images as the class's probabilities add up to, and at least one.
    """
    falling = logits.float().sigmoid().cpu().sort(dim=0, descending=True).values
    counts = falling.sum(dim=0).round().clamp(min=1).int().tolist()
    return [_between(falling[:, c], count) for c, count in enumerate(counts)]


def _counts(falling: Tensor) -> list[int]:
    """Return the numbers of images that a threshold on falling probabilities can accept."""
    ends = torch.nonzero(falling[1:] < falling[:-1]).flatten() + 1
    return [*ends.tolist(), len(falling)]


def _between(falling: Tensor, count: int) -> float:
    last = float(falling[count - 1])
    below = float(falling[count]) if count < len(falling) else 0.0
    middle = float(torch.tensor((last + below) / 2))
    return middle if below < middle <= last else last
