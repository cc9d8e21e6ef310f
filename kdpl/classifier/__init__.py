"""Classifier, which is deployed, its folder, and what it predicts.

The public names load on first use: commands look for bad input before they import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdpl.classifier.decision import DecisionRule, Predicted, Prediction
    from kdpl.classifier.model import Classifier, Precision

_HOMES = {
    "Classifier": "model",
    "DecisionRule": "decision",
    "Precision": "model",
    "Predicted": "decision",
    "Prediction": "decision",
}

__all__ = ["Classifier", "DecisionRule", "Precision", "Predicted", "Prediction"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"kdpl.classifier.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'kdpl.classifier' has no attribute {name!r}")
