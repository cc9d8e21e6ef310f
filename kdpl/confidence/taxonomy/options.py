"""Option of ``predict`` and ``serve`` for a tree of classes; imports no torch."""

from typing import TYPE_CHECKING

from kdpl.cli.arguments import MakeRule, share

if TYPE_CHECKING:
    from kdpl.classifier import Classifier
    from kdpl.tasks import DecisionRule


def options(*, level_error: str | None = None) -> MakeRule:
    """Read the option; named in the plugin's ``predict``.

    Args:
        level_error: name the deepest node of the tree of classes that keeps this error at its
            level, such as 2%, in the columns class and level; the class of an image without such a
            node is left empty, at level 0
    """
    error = share("--level-error", level_error)

    def rule_of(classifier: "Classifier") -> "DecisionRule":
        from kdpl.confidence.taxonomy.scores import level_rule

        return level_rule(classifier, error or 0.0)

    return rule_of
