"""Classifier, which is deployed, its folder, and what it predicts.

The public names load on first use: commands look for bad input before they import torch.
"""

from typing import TYPE_CHECKING

from kdpl.runtime.lazy import lazily

if TYPE_CHECKING:
    from kdpl.classifier.decision import DecisionRule, Predicted, Prediction
    from kdpl.classifier.model import Classifier, Precision


__all__ = ["Classifier", "DecisionRule", "Precision", "Predicted", "Prediction"]

__getattr__ = lazily(
    __name__,
    {
        "Classifier": "model",
        "DecisionRule": "decision",
        "Precision": "model",
        "Predicted": "decision",
        "Prediction": "decision",
    },
)
