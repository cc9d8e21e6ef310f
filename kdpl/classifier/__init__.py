"""Classifier, which is deployed, its folder, and what it predicts."""

from kdpl.classifier.decision import Predicted, Prediction
from kdpl.classifier.model import Classifier, Precision

__all__ = ["Classifier", "Precision", "Predicted", "Prediction"]
