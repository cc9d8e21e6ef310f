"""Average precision and F1 at thresholds of classes, and the thresholds of the best F1."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat

from kdpl.metrics import BASE_MAP, CHANCE, HM, MACRO_F1, MAP, MICRO_F1, NOVEL_MAP, harmonic_mean

DEFAULT = 0.5
"""Threshold of a class without a chosen one."""


class ClassScores(NamedTuple):
    """Scores of each class, float64 [C]; NaN if undefined.

    Average precision, recall and F1 are undefined for a class without images.
    """

    positives: Tensor
    average_precision: Tensor
    precision: Tensor
    recall: Tensor
    f1: Tensor

    def cells(self, label: int, digits: int) -> list[str]:
        """Return all scores of a class but ``positives`` as text, empty if undefined."""
        measured = [float(column[label]) for column in self[1:]]
        return ["" if math.isnan(score) else f"{score:.{digits}f}" for score in measured]


class MultiLabelMetrics(Metric):
    """Mean average precision, its value by chance, and macro and micro F1 at thresholds.

    ``map`` and ``macro_f1`` are means over the classes with at least one image; ``chance``, the
    ``map`` of a random order, is the mean of their shares of images; ``micro_f1`` is computed over
    all decisions. With ``num_base``, ``base_…`` and ``novel_…`` cover the base and the novel
    classes of all images, and ``hm`` is the harmonic mean of ``base_map`` and ``novel_map``. All
    are fractions, and NaN if no class has an image. ``thresholds`` has one for each class; None:
    0.5 for all.
    """

    full_state_update = False
    higher_is_better = True
    logits: list[Tensor]
    targets: list[Tensor]

    def __init__(
        self, num_base: int | None = None, thresholds: Sequence[float] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_base = num_base
        self.thresholds = thresholds
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Keep the logits and labels, 0 or 1, of a batch, both [B, C]."""
        self.logits.append(logits)
        self.targets.append(labels)

    def compute(self) -> dict[str, Tensor]:
        """Return the values by name."""
        logits, targets = dim_zero_cat(self.logits), dim_zero_cat(self.targets)
        scores = class_scores(logits, targets, self.thresholds)
        decided, has = decisions(logits, self.thresholds), targets.bool()
        shares = torch.where(scores.positives > 0, scores.positives.double() / len(has), torch.nan)
        parts = {"": slice(None)}
        if self.num_base is not None:
            parts |= {"base_": slice(self.num_base), "novel_": slice(self.num_base, None)}

        values: dict[str, Tensor] = {}
        for name, part in parts.items():
            values[name + MAP] = scores.average_precision[part].nanmean()
            values[name + CHANCE] = shares[part].nanmean()
            values[name + MACRO_F1] = scores.f1[part].nanmean()
            values[name + MICRO_F1] = _f1(decided[:, part].flatten(), has[:, part].flatten())
        if self.num_base is not None:
            values[HM] = harmonic_mean(values[BASE_MAP], values[NOVEL_MAP])
        return {name: value.float() for name, value in values.items()}


def decisions(logits: Tensor, thresholds: Sequence[float] | None) -> Tensor:
    """Decide for each class whether it is predicted; logits and result, bool, are [..., C]."""
    limits = [DEFAULT] * logits.shape[-1] if thresholds is None else thresholds
    return logits.float().sigmoid() >= torch.tensor(limits, device=logits.device)


def class_scores(
    logits: Tensor, targets: Tensor, thresholds: Sequence[float] | None
) -> ClassScores:
    """Compute the scores of each class from logits and labels, 0 or 1, both [N, C]."""
    decided, has = decisions(logits, thresholds), targets.bool()
    positives, hits = has.sum(dim=0), (decided & has).sum(dim=0).double()

    # in float64, where rounding makes hardly any two probabilities equal
    probabilities = logits.double().sigmoid()
    nothing = probabilities.new_tensor(torch.nan)
    precisions = [
        binary_average_precision(of_class, labels.long()).double() if labels.any() else nothing
        for of_class, labels in zip(probabilities.T, has.T, strict=True)
    ]
    return ClassScores(
        positives,
        torch.stack(precisions),
        hits / decided.sum(dim=0),
        hits / positives,
        _f1(decided, has),
    )


def _f1(decided: Tensor, has: Tensor) -> Tensor:
    """Compute F1 of each column of decisions and labels [N, …]; NaN for columns without a label."""
    positives, hits = has.sum(dim=0), (decided & has).sum(dim=0).double()
    return torch.where(positives > 0, 2 * hits / (decided.sum(dim=0) + positives), torch.nan)


def choose_thresholds(logits: Tensor, targets: Tensor) -> list[float]:
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
        # F1 of each number of images that a threshold can accept
        ends = torch.nonzero(falling[1:] < falling[:-1]).flatten() + 1
        counts = torch.tensor([*ends.tolist(), len(falling)])
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


def _between(falling: Tensor, count: int) -> float:
    last = float(falling[count - 1])
    below = float(falling[count]) if count < len(falling) else 0.0
    middle = float(torch.tensor((last + below) / 2))
    return middle if below < middle <= last else last
