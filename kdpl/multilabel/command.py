"""The option ``--threshold`` of ``predict`` and ``serve``."""

from typing import TYPE_CHECKING

from kdpl.cli.arguments import MakeRule
from kdpl.errors import ConfigError

if TYPE_CHECKING:
    from kdpl.classifier import Classifier
    from kdpl.tasks import DecisionRule


def options(*, threshold: float | None = None) -> MakeRule:
    """Read the options.

    Args:
        threshold: with several labels an image, the least probability for which any class is named,
            instead of the classifier's threshold of each class; 0 names all classes
    """

    def rule_of(classifier: "Classifier") -> "DecisionRule":
        from kdpl.tasks import DecisionRule

        if threshold is None or not 0 <= threshold <= 1:
            raise ConfigError(
                f"--threshold is {threshold}, expected a number from 0 to 1: give one"
            )
        if not classifier.task.per_class:
            raise ConfigError(
                "--threshold is for several labels an image, and this classifier names one class: "
                "reject images by --max-error"
            )
        return DecisionRule(threshold=threshold)

    return rule_of
