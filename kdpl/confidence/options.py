"""Options of ``predict`` and ``serve`` for doubtful predictions; imports no torch."""

import sys
from typing import TYPE_CHECKING

from kdpl.cli.arguments import MakeRule, share

if TYPE_CHECKING:
    from kdpl.classifier import Classifier
    from kdpl.tasks import DecisionRule


def options(
    *,
    max_error: str | None = None,
    sets: str | None = None,
    calibrated: bool = False,
    unknown: bool = False,
) -> MakeRule:
    """Read the options; named in the plugin's ``predict``.

    Args:
        max_error: wanted error among accepted images, such as 0.02; the class of rejected images is
            left empty
        sets: wanted share of images whose set of classes has the true one, such as 0.95; the sets
            are a column, classes
        calibrated: probabilities at the temperature fitted on held-out images
        unknown: add the column unknown, the score from 0 to 1 of being none of the classes; with 19
            validation images or more, about 5 % of images of the classes are above 0.5
    """
    error, coverage = share("--max-error", max_error), share("--sets", sets)

    def rule_of(classifier: "Classifier") -> "DecisionRule":
        from kdpl.confidence.decision import decision_rule
        from kdpl.confidence.held_out import held_out_of
        from kdpl.confidence.unknown import limit_warning, unknown_of

        rule = decision_rule(classifier, error, coverage, calibrated, unknown)
        if calibrated and (warning := held_out_of(classifier).temperature_warning()):
            print(f"warning: --calibrated: {warning}", file=sys.stderr)
        if unknown and (warning := limit_warning(unknown_of(classifier).held_out)):
            print(f"warning: --unknown: {warning}", file=sys.stderr)
        return rule

    return rule_of


def level_option(*, level_error: str | None = None) -> MakeRule:
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
