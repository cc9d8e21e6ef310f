"""Names of metrics, and accuracy over all, base and novel classes."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

# accuracies, with one class an image
ACC, BASE_ACC, NOVEL_ACC, HM = "acc", "base_acc", "novel_acc", "hm"

# with several labels an image, and the mAP of random predictions
MAP, BASE_MAP, NOVEL_MAP = "map", "base_map", "novel_map"
MACRO_F1, MICRO_F1, CHANCE = "macro_f1", "micro_f1", "chance"


ACCURACY_TITLES = {
    ACC: "all classes",
    BASE_ACC: "base classes",
    NOVEL_ACC: "novel classes",
    HM: "harmonic mean",
}
"""Titles of the accuracies that ``DomainAccuracy`` computes."""

ACCURACY_COLUMNS = {ACC: "all", BASE_ACC: "base", NOVEL_ACC: "novel", HM: "HM"}
"""Short titles of the same accuracies, for columns."""

MULTILABEL_COLUMNS = {
    MAP: "mAP",
    BASE_MAP: "base mAP",
    NOVEL_MAP: "novel mAP",
    MACRO_F1: "macro F1",
    MICRO_F1: "micro F1",
}
"""Short titles of the metrics for several labels per image."""

SUMMARY_COLUMNS = {**MULTILABEL_COLUMNS, **ACCURACY_COLUMNS}
"""Short titles of all metrics in summaries, in the order of the columns."""

TRAIN_LOSS = "train/loss"
POOL_KEPT = "pool/kept"
TEST_CHOICE = "choice/test_base_acc"

# agreement of student and target on unseen images, and their number (kdpl.targets.fidelity)
FIDELITY, TARGET_KL, UNSEEN = "val/fidelity", "val/kl", "pool/unseen"

_ALL, _BASE, _NOVEL = range(3)


def train_key(name: str) -> str:
    """Return the logged name of a value of training steps; ``TRAIN_LOSS`` for their loss."""
    return f"train/{name}"


def val_key(accuracy: str) -> str:
    """Return the logged name of an accuracy on validation images."""
    return f"val/{accuracy}"


def test_key(accuracy: str) -> str:
    """Return the logged name of an accuracy on test images."""
    return f"test/{accuracy}"


class DomainAccuracy(Metric):
    """Top-1 accuracy as defined by the protocols.

    ``acc`` is over all classes. With ``num_base``, ``base_acc`` classifies base images among base
    classes, ``novel_acc`` novel images among novel classes, and ``hm`` is their harmonic mean
    2·b·n/(b + n). All are fractions, and NaN without images. Base classes come first. ``kwargs``
    are passed to ``torchmetrics.Metric``.
    """

    full_state_update = False
    higher_is_better = True
    correct: Tensor
    total: Tensor

    def __init__(self, num_base: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_base = num_base
        self.add_state("correct", torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch of logits [B, C] and labels [B], indices into all C classes."""
        self._count(_ALL, logits, labels)
        if self.num_base is not None:
            base = labels < self.num_base
            self._count(_BASE, logits[base, : self.num_base], labels[base])
            self._count(_NOVEL, logits[~base, self.num_base :], labels[~base] - self.num_base)

    def _count(self, split: int, logits: Tensor, labels: Tensor) -> None:
        if len(labels):
            self.correct[split] += (logits.argmax(dim=1) == labels).sum()
            self.total[split] += len(labels)

    def compute(self) -> dict[str, Tensor]:
        """Return ``acc`` and, with a base/novel split, ``base_acc``, ``novel_acc`` and ``hm``."""
        overall, base, novel = self.correct / self.total
        if self.num_base is None:
            return {ACC: overall}
        mean = harmonic_mean(base, novel)
        return {ACC: overall, BASE_ACC: base, NOVEL_ACC: novel, HM: mean}


def harmonic_mean(base: Tensor, novel: Tensor) -> Tensor:
    """Compute the harmonic mean 2·b·n/(b + n) of two accuracies; 0 if both are 0."""
    return torch.where(base + novel == 0, torch.zeros_like(base), 2 * base * novel / (base + novel))
