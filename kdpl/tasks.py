"""Tasks: the loss, divergence, accuracy, decision and table columns of predictions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdpl.errors import ConfigError
from kdpl.losses import distillation_kl

if TYPE_CHECKING:
    from torchmetrics import Metric

    from kdpl.metrics import DomainAccuracy


class Prediction(NamedTuple):
    """A class, None for a rejected image, and its probability."""

    class_name: str | None
    probability: float


class Predicted(NamedTuple):
    """Predictions for an image, and its embedding: the encoder's normalised features, float32 [D].

    ``scores`` are the further scores of the classifier's companions, by name.
    """

    top: list[Prediction]
    embedding: Tensor
    scores: Mapping[str, float]


@dataclass(frozen=True)
class DecisionRule:
    """Thresholds that decide what is predicted for an image, given its probabilities.

    Attributes:
        temperature: Divides the logits of the returned probabilities; decisions are taken at
            temperature 1.
        threshold: Images whose largest probability is below it are rejected. With several labels
            per image it replaces the thresholds of the task. None: not set.
        set_threshold: The set of an image holds its most probable class, and all classes of at
            least this probability; None: no sets.
        scores: Names of the further scores that tables have as columns.
        limits: Further scores, by name, above which an image is rejected.
    """

    temperature: float = 1.0
    threshold: float | None = None
    set_threshold: float | None = None
    scores: tuple[str, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)


class ClassScaling(nn.Module, ABC):
    """Learned scale and bias of each class, applied to logits [B, C].

    It is the attribute ``scores`` of a module, and part of its checkpoints.
    """

    @abstractmethod
    def begin(self, module: nn.Module) -> None:
        """Initialise scales and biases, before the first step or test of their module.

        Does nothing if a checkpoint was restored.
        """

    @abstractmethod
    def forward(self, logits: Tensor) -> Tensor:
        """Map cosine logits [B, K] of the first K classes to logits of the task."""

    @abstractmethod
    def centered(self, logits: Tensor) -> Tensor:
        """Map zero-shot logits to logits of the task, as before any training."""

    @abstractmethod
    def values(self) -> tuple[Tensor, Tensor]:
        """Return scales and biases of the classes, [C] each."""


SEPARATOR = ";"
"""Separates the names of an image's classes in tables."""


class Task(ABC):
    """Interpretation of the logits [B, C] of the C classes of a domain.

    Nothing else knows how logits become probabilities, labels and losses, except methods that are
    defined for one task alone. Both modules have a ``task``; the student passes its task to
    its ``Classifier``. The dataset decides the task, see ``build_task``.

    Attributes:
        name: Name in datasets and artifacts.
        per_class: True if each class is decided independently of the others.
    """

    name: ClassVar[str]
    per_class: ClassVar[bool] = False

    def settings(self) -> dict[str, Any]:
        """Return the arguments of its class as JSON, for a classifier's folder."""
        return {}

    def metadata(self, num_classes: int) -> dict[str, str]:
        """Return its metadata for exported files, as JSON by name."""
        return {}

    def require_classes(self, class_names: Sequence[str]) -> None:
        """Raise a ConfigError if the task does not support these classes."""
        return

    def calibrated(
        self, logits: Tensor, labels: Tensor, class_names: Sequence[str]
    ) -> tuple["Task", list[str]]:
        """Choose its settings on held-out images; also returns lines that say how good they are.

        Logits are [V, C], and labels in the form of ``labels``.
        """
        return self, []

    def class_scaling(self, num_classes: int, num_learned: int) -> ClassScaling | None:
        """Make the scaling of C classes, the first of them learned; None for tasks without one."""
        return None

    def ranked(self, top_k: int, num_classes: int, rule: "DecisionRule") -> int:
        """Return the number of most probable classes that ``decide`` needs."""
        return min(top_k, num_classes) if rule.set_threshold is None else num_classes

    def undecided(self, probability: float) -> list[Prediction]:
        """Return the predictions if ``decide`` chose none, given the largest probability."""
        return [Prediction(None, probability)]

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of logits [B, C] on labels, a scalar; mean over images."""

    @abstractmethod
    def divergence(self, logits: Tensor, target_logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Compute a scalar distance of predictions from targets, both [B, C].

        It is differentiable in the predictions. The student's loss, PromptSRC's regulariser of the
        tuned predictions and ``val/kl`` of ``Fidelity`` use it.
        """

    @abstractmethod
    def accuracy(self, num_base: int | None) -> "Metric":
        """Return the metric of logits and labels over all, base and novel classes.

        Its values, by name, are logged.
        """

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each class, in the shape of the logits [..., C]."""

    @abstractmethod
    def labels(self, logits: Tensor) -> Tensor:
        """Return the predictions of logits [..., C], in the form of the labels.

        Tasks of one class per image also accept probabilities.
        """

    def same(self, logits: Tensor, other: Tensor) -> Tensor:
        """Compare the predictions of two tensors of logits [B, C]; bool [B], True where equal.

        Logits are as for ``labels``.
        """
        equal = self.labels(logits) == self.labels(other)
        return equal.all(dim=-1) if self.per_class else equal

    def agreements(self, logits: Tensor, other: Tensor) -> Tensor:
        """Count equal predictions of two tensors of logits [B, C], and all, float [2, K].

        Counts of batches add up; ``agreement_of`` turns the sum into one share. Here K is 1, and
        images are counted.
        """
        same = self.same(logits, other)
        return torch.stack([same.sum(), same.new_tensor(len(same), dtype=torch.long)])[:, None]

    @abstractmethod
    def decide(
        self, labels: Sequence[int], deciding: Sequence[float], rule: DecisionRule
    ) -> Sequence[int]:
        """Choose the predicted classes of an image; empty: it is rejected.

        Args:
            labels: The most probable classes, most probable first.
            deciding: Their probabilities at temperature 1.
            rule: The thresholds.
        """

    @abstractmethod
    def columns(self, top_k: int, rule: DecisionRule) -> list[str]:
        """Return the columns of a prediction table between ``path`` and ``error``."""

    @abstractmethod
    def cells(self, predicted: Predicted, columns: Sequence[str]) -> dict[str, Any]:
        """Return the values of an image by column, for columns that apply to it."""


class MultiClass(Task):
    """One class per image: softmax over all classes."""

    name: ClassVar[str] = "multiclass"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross entropy with labels int64 [B]."""
        return F.cross_entropy(logits, labels)

    def divergence(self, logits: Tensor, target_logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Compute ``kdpl.losses.distillation_kl``."""
        return distillation_kl(logits, target_logits, temperature)

    def accuracy(self, num_base: int | None) -> "DomainAccuracy":
        """Return top-1 accuracy."""
        # torchmetrics takes as long to import as torch, and a classifier needs none
        from kdpl.metrics import DomainAccuracy

        return DomainAccuracy(num_base)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Compute the softmax."""
        return logits.softmax(dim=-1)

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return the logarithms of ``probabilities``, exact where a probability would be 0."""
        return logits.log_softmax(dim=-1)

    def labels(self, logits: Tensor) -> Tensor:
        """Return the most probable class, int64 [...]."""
        return logits.argmax(dim=-1)

    def decide(
        self, labels: Sequence[int], deciding: Sequence[float], rule: DecisionRule
    ) -> Sequence[int]:
        """Choose all requested classes, or the classes in the set; none if rejected."""
        # rejection comes before the set
        if rule.threshold is not None and deciding[0] < rule.threshold:
            return []
        if rule.set_threshold is None:
            return labels
        return labels[: max(1, sum(p >= rule.set_threshold for p in deciding))]

    def columns(self, top_k: int, rule: DecisionRule) -> list[str]:
        """Return ``class``, ``probability``, ``class_2``, …, and ``classes`` for sets."""
        # the first rank has no number
        ranks = ["", *(f"_{i}" for i in range(2, top_k + 1))]
        predictions = [name + rank for rank in ranks for name in ("class", "probability")]
        sets = [] if rule.set_threshold is None else ["classes"]
        return [*predictions, *sets, *rule.scores]

    def cells(self, predicted: Predicted, columns: Sequence[str]) -> dict[str, Any]:
        """Return classes and their probabilities, the set, and further scores."""
        # ranked classes; a rejected image has one class, None, and a set may exceed the columns
        ranked = [name for name in columns if name.startswith(("class", "probability"))]
        values = [cell for p in predicted.top for cell in (p.class_name, round(p.probability, 6))]
        cells: dict[str, Any] = dict(zip(ranked, values, strict=False))

        # the set, and further scores
        if "classes" in columns:
            cells["classes"] = ";".join(str(p.class_name) for p in predicted.top)
        named = predicted.scores.items()
        return cells | {name: round(score, 6) for name, score in named if name in columns}


def agreement_of(counts: Tensor) -> Tensor:
    """Return the share of agreements in counts [2, K], the mean over columns with a count."""
    agreed, counted = counts.float()
    share: Tensor = (agreed / counted.clamp(min=1)).sum() / (counted > 0).sum().clamp(min=1)
    return share


MULTI_CLASS = MultiClass()
"""The only built-in task."""


def build_task(name: str, **settings: Any) -> Task:
    """Build a task, ``multiclass``, ``multilabel`` or a dotted path, with its settings."""
    if name == MULTI_CLASS.name:
        return MULTI_CLASS
    from kdpl.runtime.configs import find_class  # which a classifier of one label does without

    named = {
        MULTI_CLASS.name: "kdpl.tasks.MultiClass",
        "multilabel": "kdpl.multilabel.task.MultiLabel",
    }
    return find_class(name, named, Task, "task")(**settings)  # type: ignore[type-abstract]


def require_one_class(task: str, what: str) -> None:
    """Raise a ConfigError unless a task, by name, has one class per image."""
    if task != MULTI_CLASS.name:
        raise ConfigError(
            f"{what} is defined for images of one class each, and this is a {task} task: do "
            "without it"
        )
