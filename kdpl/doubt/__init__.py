"""Doubt: calibrated probabilities, rejection at a wanted error, prediction sets, and none of the classes.

The public names load on first use, since some of them import Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdpl.doubt.decision import decision_rule
    from kdpl.doubt.held_out import HeldOutScores
    from kdpl.doubt.negatives import NegativeVectors
    from kdpl.doubt.unknown import Unknown, none_of_these

_HOMES = {
    "HeldOutScores": "held_out",
    "NegativeVectors": "negatives",
    "Unknown": "unknown",
    "decision_rule": "decision",
    "none_of_these": "unknown",
}

__all__ = ["HeldOutScores", "NegativeVectors", "Unknown", "decision_rule", "none_of_these"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"kdpl.doubt.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'kdpl.doubt' has no attribute {name!r}")
