"""Calibrated probabilities, rejection, prediction sets, and scores of none of the classes.

Public names load on first use, since some of them import Lightning.
"""

from typing import TYPE_CHECKING

from kdpl.runtime.optional import lazily

if TYPE_CHECKING:
    from kdpl.confidence.decision import decision_rule
    from kdpl.confidence.negatives import NegativeVectors
    from kdpl.confidence.unknown import none_of_these


__all__ = ["NegativeVectors", "decision_rule", "none_of_these"]

__getattr__ = lazily(
    __name__,
    {
        "decision": ["decision_rule"],
        "negatives": ["NegativeVectors"],
        "unknown": ["none_of_these"],
    },
)
