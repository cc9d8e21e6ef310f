"""From probabilities to predictions: which classes are named for an image, and which images are rejected."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from kdpl.doubt.held_out import REMEDY, TEMPERATURES, HeldOutScores
from kdpl.errors import ArtifactError, ConfigError


class Prediction(NamedTuple):
    """A class, None for a rejected image, and its probability by softmax over all classes."""

    class_name: str | None
    probability: float


class Predicted(NamedTuple):
    """The most probable classes of an image, and its embedding: the encoder's normalised features, float32 [D].

    ``unknown`` is the score of being none of the classes, if the classifier has one.
    """

    top: list[Prediction]
    embedding: Tensor
    unknown: float | None


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
    """

    temperature: float = 1.0
    threshold: float = 0.0
    set_threshold: float | None = None
    class_thresholds: list[float] | None = None

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


def decision_rule(
    held_out: HeldOutScores | None,
    max_error: float | None = None,
    sets: float | None = None,
    calibrated: bool = False,
    per_class: bool = False,
) -> DecisionRule:
    """Make the rule for a wanted error, ``per_class`` if asked for, a coverage of sets, or calibrated probabilities.

    ConfigError if both an error and sets are wanted, or see ``HeldOutScores``; ArtifactError without scores.
    """
    if per_class and max_error is None:
        raise ConfigError("per_class keeps an error for each class, but none is wanted: give max_error")
    if max_error is not None and sets is not None:
        raise ConfigError("max_error rejects images and sets names several classes for them: give one of the two")
    if max_error is None and sets is None and not calibrated:
        return DecisionRule()
    if held_out is None:
        raise ArtifactError(f"max_error, sets and calibrated need scores that this classifier does not have: {REMEDY}")
    if calibrated and held_out.temperature in TEMPERATURES:
        raise ConfigError(f"on {len(held_out)} held-out images no temperature is best: calibrate on more images")
    return DecisionRule(
        held_out.temperature if calibrated else 1.0,
        held_out.threshold(max_error) if max_error is not None and not per_class else 0.0,
        held_out.set_threshold(sets) if sets is not None else None,
        held_out.class_thresholds(max_error) if max_error is not None and per_class else None,
    )
