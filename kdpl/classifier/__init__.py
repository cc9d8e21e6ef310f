"""Classifier for deployment, and its folder.

Public names load on first use: commands check their input before they import torch.
"""

from typing import TYPE_CHECKING

from kdpl.runtime.optional import lazily

if TYPE_CHECKING:
    from kdpl.classifier.model import Classifier, Precision, PredictOptions
    from kdpl.data.decoding import Decoding


__all__ = ["Classifier", "Decoding", "Precision", "PredictOptions"]

__getattr__ = lazily(__name__, {"model": __all__})
