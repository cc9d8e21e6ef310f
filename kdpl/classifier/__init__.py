"""Classifier, which is deployed, its folder, and what it predicts."""

from kdpl.classifier.model import Classifier, Precision
from kdpl.doubt.decision import Predicted, Prediction

__all__ = ["Classifier", "Precision", "Predicted", "Prediction"]
