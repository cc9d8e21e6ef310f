"""From probabilities to predictions: which classes are named for an image, and which images are rejected."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Prediction(NamedTuple):
    """A class, None for a rejected image, and its probability by softmax over all classes."""

    class_name: str | None
    probability: float


class Predicted(NamedTuple):
    """The most probable classes of an image, and its embedding: the encoder's normalised features, float32 [D].

    ``scores`` are those of the classifier's companions, by name.
    """

    top: list[Prediction]
    embedding: "Tensor"
    scores: Mapping[str, float]


@dataclass(frozen=True)
class DecisionRule:
    """What is predicted for an image, given its probabilities by softmax.

    Attributes:
        temperature: Divides the logits of the probabilities that are returned; those that decide are at temperature 1.
        threshold: An image with a smaller largest probability is rejected.
        class_thresholds: A threshold for each class in place of that one, by label of the predicted class; classes
            beyond them are rejected.
        set_threshold: The set of an image is its most probable class, and all of at least this probability; None: no
            sets.
        scores: Names of the further scores that tables have as columns.
    """

    temperature: float = 1.0
    threshold: float = 0.0
    set_threshold: float | None = None
    class_thresholds: list[float] | None = None
    scores: tuple[str, ...] = ()

    def predicted(self, probabilities: Sequence[float], label: int) -> int:
        """Return how many classes are predicted; 0: rejected.

        Probabilities are those at temperature 1 in falling order, and the label is that of the first one.
        """
        if probabilities[0] < self.class_threshold(label):
            return 0
        least = self.set_threshold
        return len(probabilities) if least is None else max(1, sum(p >= least for p in probabilities))

    def class_threshold(self, label: int) -> float:
        """Return the threshold for images that are predicted as a class; infinite: all are rejected."""
        if self.class_thresholds is None:
            return self.threshold
        return self.class_thresholds[label] if label < len(self.class_thresholds) else math.inf
