"""The task of images with any number of labels, an independent decision for each class."""

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from kdpl.errors import ConfigError
from kdpl.multilabel.metrics import (
    DEFAULT,
    MultiLabelMetrics,
    choose_thresholds,
    class_scores,
    decisions,
)
from kdpl.tasks import SEPARATOR, ClassScaling, DecisionRule, Predicted, Prediction, Task


class MultiLabel(Task):
    """Any number of classes per image; logits are log odds, and probabilities their sigmoid.

    Args:
        thresholds: Least probability to predict a class, for each class; None: 0.5 for all.
    """

    name: ClassVar[str] = "multilabel"
    per_class: ClassVar[bool] = True

    def __init__(self, thresholds: Sequence[float] | None = None) -> None:
        values = thresholds or ()
        if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in values):
            raise ConfigError(
                f"thresholds are {thresholds}, expected numbers from 0 to 1: correct them"
            )
        self.thresholds = None if thresholds is None else tuple(thresholds)

    def calibrated(
        self, logits: Tensor, labels: Tensor, class_names: Sequence[str]
    ) -> tuple["MultiLabel", list[str]]:
        """Choose the threshold of the best F1 for each class; a class without images keeps its own.

        A line on each class has its threshold, images, precision, recall and F1.
        """
        has_images = labels.any(dim=0).tolist()
        before, chosen = self.thresholds_of(len(class_names)), choose_thresholds(logits, labels)
        values = [
            new if has else old for old, new, has in zip(before, chosen, has_images, strict=True)
        ]
        scores = class_scores(logits, labels, values)
        lines = ["class, threshold, images, precision, recall, F1 on these images:"]
        for label, name in enumerate(class_names):
            shown = ", ".join(scores.cells(label, digits=3)[1:])
            lines.append(f"  {name}: {values[label]:.4f}, {int(scores.positives[label])}, {shown}")
            if not has_images[label]:
                lines.append("    no held-out image has it: its threshold is as it was")
        return MultiLabel(values), lines

    def class_scaling(self, num_classes: int, num_learned: int) -> ClassScaling:
        """Make a scale and a bias of each class."""
        from kdpl.multilabel.scores import ScaleAndBias  # needs Lightning, a classifier does not

        return ScaleAndBias(num_classes, num_learned)

    def settings(self) -> dict[str, Any]:
        """Return the thresholds."""
        return {} if self.thresholds is None else {"thresholds": list(self.thresholds)}

    def metadata(self, num_classes: int) -> dict[str, str]:
        """Return the task's name, and a threshold for each class."""
        thresholds = json.dumps(self.thresholds_of(num_classes))
        return {"task": self.name, "label_thresholds": thresholds}

    def require_classes(self, class_names: Sequence[str]) -> None:
        """Raise a ConfigError for ambiguous names, or a wrong number of thresholds."""
        if ambiguous := next((name for name in class_names if SEPARATOR in name), None):
            raise ConfigError(
                f"class {ambiguous!r} has a {SEPARATOR!r} in its name, the separator of an image's "
                "labels in tables: give it another name by classes.names"
            )
        if self.thresholds is not None and len(self.thresholds) != len(class_names):
            raise ConfigError(
                f"there are {len(self.thresholds)} thresholds for {len(class_names)} classes: "
                "choose them again (python -m kdpl calibrate)"
            )

    def thresholds_of(self, num_classes: int) -> list[float]:
        """Return the threshold of each class."""
        return [DEFAULT] * num_classes if self.thresholds is None else list(self.thresholds)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the binary cross entropy, a sum over classes, with labels 0 or 1, [B, C]."""
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(logits)

    def divergence(self, logits: Tensor, target_logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Compute τ² · Σ KL(target ‖ prediction) / (B·C) over images and classes."""
        predicted, target = logits / temperature, target_logits / temperature
        having = target.sigmoid() * (F.logsigmoid(target) - F.logsigmoid(predicted))
        lacking = (-target).sigmoid() * (F.logsigmoid(-target) - F.logsigmoid(-predicted))
        return (having + lacking).sum() / logits.numel() * temperature**2

    def accuracy(self, num_base: int | None) -> MultiLabelMetrics:
        """Return mean average precision and F1 at the thresholds."""
        return MultiLabelMetrics(num_base, self.thresholds)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Compute the sigmoid."""
        return logits.sigmoid()

    def labels(self, logits: Tensor) -> Tensor:
        """Return which classes the images of logits [..., C] have, bool [..., C]."""
        return decisions(logits, self.thresholds)

    def agreements(self, logits: Tensor, other: Tensor) -> Tensor:
        """Count, for each class, images that both give it, of those that either does, [2, C].

        Images that lack it in both are not counted, since most images lack most classes.
        """
        first, second = self.labels(logits), self.labels(other)
        return torch.stack([(first & second).sum(dim=0), (first | second).sum(dim=0)])

    def ranked(self, top_k: int, num_classes: int, rule: DecisionRule) -> int:
        """Return the number of classes, since an image may have all of them."""
        return num_classes

    def undecided(self, probability: float) -> list[Prediction]:
        """Return an empty list: an image may have no class."""
        return []

    def decide(
        self, labels: Sequence[int], deciding: Sequence[float], rule: DecisionRule
    ) -> Sequence[int]:
        """Choose the classes at or above their thresholds, or the threshold of the rule if set."""
        thresholds = self.thresholds_of(len(labels))
        if rule.threshold is not None:
            thresholds = [rule.threshold] * len(labels)
        ranked = zip(labels, deciding, strict=True)
        return [label for label, probability in ranked if probability >= thresholds[label]]

    def columns(self, top_k: int, rule: DecisionRule) -> list[str]:
        """Return ``labels``, the names, and ``scores``, the probabilities, for any ``top_k``."""
        return ["labels", "scores", *rule.scores]

    def cells(self, predicted: Predicted, columns: Sequence[str]) -> dict[str, Any]:
        """Return names and probabilities, the most probable first, and further scores."""
        cells: dict[str, Any] = {
            "labels": SEPARATOR.join(str(item.class_name) for item in predicted.top),
            "scores": SEPARATOR.join(str(round(item.probability, 6)) for item in predicted.top),
        }
        named = predicted.scores.items()
        return cells | {name: round(score, 6) for name, score in named if name in columns}
