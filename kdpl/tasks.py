"""Meaning of predictions: their loss, divergence, accuracy, decision and columns."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from kdpl.errors import ConfigError
from kdpl.losses import distillation_kl
from kdpl.metrics import DomainAccuracy


class Prediction(NamedTuple):
    """A class, None for a rejected image, and its probability."""

    class_name: str | None
    probability: float


class Predicted(NamedTuple):
    """Predictions for an image, and its embedding: the encoder's normalised features, float32 [D].

    ``scores`` are those of the classifier's companions, by name.
    """

    top: list[Prediction]
    embedding: Tensor
    scores: Mapping[str, float]


Naming = Callable[[list[Predicted], Tensor], list[Predicted]]
"""Names B images otherwise than by their classes, from predictions and probabilities [B, C]."""


@dataclass(frozen=True)
class DecisionRule:
    """Thresholds that decide what is predicted for an image, given its probabilities.

    Attributes:
        temperature: Divides the logits of the probabilities that are returned; those that decide
            are at temperature 1.
        threshold: An image with a smaller largest probability is rejected; with several labels an
            image, classes from it on are named, instead of the task's own. None: not given.
        set_threshold: The set of an image is its most probable class, and all of at least this
            probability; None: no sets.
        scores: Names of the further scores that tables have as columns.
        naming: Replaces the predictions of images, such as by nodes of a tree of classes.
    """

    temperature: float = 1.0
    threshold: float | None = None
    set_threshold: float | None = None
    scores: tuple[str, ...] = ()
    naming: Naming | None = None


class ClassScores(nn.Module, ABC):
    """What a task learns beside prompts: a scale and a bias of each class, for its logits [B, C].

    A module has them as ``scores``, and their state is part of its checkpoints.
    """

    @abstractmethod
    def begin(self, module: nn.Module) -> None:
        """Choose where they start, before the first step or test of the module that has them.

        Nothing changes where a checkpoint was restored.
        """

    @abstractmethod
    def forward(self, logits: Tensor) -> Tensor:
        """Return the logits of the task, of cosine logits [B, K] of the first K classes."""

    @abstractmethod
    def centered(self, logits: Tensor) -> Tensor:
        """Return the logits of the task before anything was learned: of zero-shot predictions."""

    @abstractmethod
    def values(self) -> tuple[Tensor, Tensor]:
        """Return scale and bias of each class, [C] each."""


class Task(ABC):
    """Meaning of the logits [B, C] of the C classes of a domain.

    Nothing else knows how logits become probabilities, labels and losses, but for methods that are
    defined for one task alone. Both modules have one as ``task``, which the student passes to its
    ``Teachers``, and ``Classifier`` has the same. The dataset decides which: ``kdpl.data.tasks``.

    Attributes:
        name: Its name, in datasets and artifacts.
        per_class: Whether each class is decided by itself.
    """

    name: ClassVar[str]
    per_class: ClassVar[bool] = False

    def settings(self) -> dict[str, Any]:
        """Return what a classifier's folder keeps of it, as JSON: arguments of its class."""
        return {}

    def metadata(self, num_classes: int) -> dict[str, str]:
        """Return what exported files say of it, as JSON by name."""
        return {}

    def require_classes(self, class_names: Sequence[str]) -> None:
        """Raise a ConfigError if it is not for classes of these names."""
        return

    def scores(self, num_classes: int, num_learned: int) -> ClassScores | None:
        """Make the scores of C classes, of which the first are learned; None if it has none."""
        return None

    def ranked(self, top_k: int, num_classes: int, rule: "DecisionRule") -> int:
        """Return how many of the most probable classes ``decide`` needs."""
        return min(top_k, num_classes) if rule.set_threshold is None else num_classes

    def undecided(self, probability: float) -> list[Prediction]:
        """Return the predictions where ``decide`` chose none, given the largest probability."""
        return [Prediction(None, probability)]

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of logits [B, C] on labels, a scalar; mean over images."""

    @abstractmethod
    def divergence(self, logits: Tensor, target_logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Compute a scalar distance of predictions from targets, both [B, C].

        It has gradients of the predictions.
        """

    @abstractmethod
    def accuracy(self, num_base: int | None) -> Metric:
        """Return the metric of logits and labels, over all classes and over base and novel ones.

        It computes values by name, which are logged.
        """

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each class, of the shape of the logits [..., C]."""

    @abstractmethod
    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return the logarithms of ``probabilities``, exact where these would be 0."""

    @abstractmethod
    def mean(self, logits: Tensor) -> Tensor:
        """Return logits [B, C] of the mean of M predictions, of their logits [M, B, C]."""

    @abstractmethod
    def labels(self, scores: Tensor) -> Tensor:
        """Return predictions for scores [..., C], in the form of the labels.

        Scores are logits, or of one class an image also probabilities.
        """

    @abstractmethod
    def same(self, scores: Tensor, others: Tensor) -> Tensor:
        """Return for which images two tensors of scores [B, C] predict the same, bool [B].

        Scores are as for ``labels``.
        """

    def agreements(self, scores: Tensor, others: Tensor) -> Tensor:
        """Count where two tensors of scores [B, C] predict the same, and of how many, float [2, K].

        Counts of batches add up, and ``agreement_of`` makes one share of them. Here K is 1, and
        images are counted.
        """
        same = self.same(scores, others)
        return torch.stack([same.sum(), same.new_tensor(len(same), dtype=torch.long)])[:, None]

    @abstractmethod
    def decide(
        self, labels: Sequence[int], deciding: Sequence[float], rule: DecisionRule
    ) -> Sequence[int]:
        """Choose the classes that are named for an image; empty: it is rejected.

        Args:
            labels: The most probable classes, in falling order.
            deciding: Their probabilities, at temperature 1.
            rule: The thresholds.
        """

    @abstractmethod
    def columns(self, top_k: int, rule: DecisionRule) -> list[str]:
        """Return the columns of a table of predictions, between ``path`` and ``error``."""

    @abstractmethod
    def cells(self, predicted: Predicted, columns: Sequence[str]) -> dict[str, Any]:
        """Return the values of an image in those of these columns that it has."""


class MultiClass(Task):
    """Each image is of one class: softmax over all of them."""

    name: ClassVar[str] = "multiclass"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross entropy with labels int64 [B]."""
        return F.cross_entropy(logits, labels)

    def divergence(self, logits: Tensor, target_logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Compute ``kdpl.losses.distillation_kl``."""
        return distillation_kl(logits, target_logits, temperature)

    def accuracy(self, num_base: int | None) -> DomainAccuracy:
        """Return top-1 accuracy."""
        return DomainAccuracy(num_base)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Compute the softmax."""
        return logits.softmax(dim=-1)

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Compute the logarithm of the softmax."""
        return logits.log_softmax(dim=-1)

    def mean(self, logits: Tensor) -> Tensor:
        """Compute the logarithm of Σ_m p_m / M."""
        log_weight = logits.new_tensor(1 / len(logits)).log()
        return torch.logsumexp(log_weight + self.log_probabilities(logits), dim=0)

    def labels(self, scores: Tensor) -> Tensor:
        """Return the most probable class, int64 [...]."""
        return scores.argmax(dim=-1)

    def same(self, scores: Tensor, others: Tensor) -> Tensor:
        """Compare the most probable classes."""
        return self.labels(scores) == self.labels(others)

    def decide(
        self, labels: Sequence[int], deciding: Sequence[float], rule: DecisionRule
    ) -> Sequence[int]:
        """Choose all classes asked for, or those in the set; none if rejected."""
        if rule.threshold is not None and deciding[0] < rule.threshold:
            return []
        if rule.set_threshold is None:
            return labels
        return labels[: max(1, sum(p >= rule.set_threshold for p in deciding))]

    def columns(self, top_k: int, rule: DecisionRule) -> list[str]:
        """Return ``class``, ``probability``, ``class_2``, …, and ``classes`` for sets."""
        ranks = ["", *(f"_{i}" for i in range(2, top_k + 1))]
        predictions = [name + rank for rank in ranks for name in ("class", "probability")]
        sets = [] if rule.set_threshold is None else ["classes"]
        return [*predictions, *sets, *rule.scores]

    def cells(self, predicted: Predicted, columns: Sequence[str]) -> dict[str, Any]:
        """Return classes and their probabilities, the set, and further scores."""
        ranked = [name for name in columns if name.startswith(("class", "probability"))]
        values = [each for p in predicted.top for each in (p.class_name, round(p.probability, 6))]

        # a rejected image has one class, None, and a set may have more than there are columns
        cells: dict[str, Any] = dict(zip(ranked, values, strict=False))

        if "classes" in columns:
            cells["classes"] = ";".join(str(p.class_name) for p in predicted.top)
        named = predicted.scores.items()
        return cells | {name: round(score, 6) for name, score in named if name in columns}


def agreement_of(counts: Tensor) -> Tensor:
    """Return the share of agreements of counts [2, K], the mean over what was counted at all."""
    agreed, counted = counts.float()
    share: Tensor = (agreed / counted.clamp(min=1)).sum() / (counted > 0).sum().clamp(min=1)
    return share


MULTI_CLASS = MultiClass()
"""The only task built in."""


def require_one_class(task: str, what: str) -> None:
    """Raise a ConfigError unless a task, by name, is that of images of one class each."""
    if task != MULTI_CLASS.name:
        raise ConfigError(
            f"{what} is defined for images of one class each, and this is a {task} task: do "
            "without it"
        )
