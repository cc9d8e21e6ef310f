"""The probe: a logistic regression of labels on standardised features. Pure tensors."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kdpl.tasks import MULTI_CLASS

STRENGTHS = (30.0, 3.0, 300.0)
"""Inverse regularisations of the probe that are tried; the first where nothing can be tried."""


class Probe(NamedTuple):
    """Linear classifier of the S classes that its images were of.

    Attributes:
        weight: float [D, S].
        bias: float [S].
        classes: Their labels, int64 [S].
    """

    weight: Tensor
    bias: Tensor
    classes: Tensor

    def log_probabilities(self, features: Tensor) -> Tensor:
        """Return the logarithms of the probabilities of its classes, float [N, S]."""
        return MULTI_CLASS.log_probabilities(features @ self.weight + self.bias)


def standardize(features: Tensor) -> Tensor:
    """Return features float [N, D] with mean 0 and, over all dimensions, variance 1 in sum."""
    centered = features.float() - features.float().mean(dim=0)
    scale = (centered.std(dim=0) + 1e-6) * features.shape[1] ** 0.5
    return torch.div(centered, scale)


def fit_probe(features: Tensor, labels: Tensor, strength: float) -> Probe:
    """Fit a logistic regression: strength · Σ_i c_i · −log p_i(y_i) + ½ Σ w², free biases.

    The weight c_i of an image is n / (S · n_y) with n_y of the n images in its class, so that each
    class counts alike: how many labels it has often says more of the labelling than of the domain.

    Args:
        features: Features of labelled images, float [n, D].
        labels: Their labels, [n].
        strength: Inverse of the regularisation.
    """
    from sklearn.linear_model import LogisticRegression

    seen = classes_of(labels)
    if len(seen) == 1:
        return Probe(features.new_zeros(features.shape[1], 1), features.new_zeros(1), seen)
    rows, basis = features.double(), None
    if rows.shape[0] < rows.shape[1]:
        # the weights of the minimum lie in the span of the images, which has fewer dimensions
        left, values, basis = torch.linalg.svd(rows, full_matrices=False)
        rows = left * values
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000, tol=1e-6)
    with warnings.catch_warnings():
        # that classes are many for so few images, and that separable ones have no largest weights
        warnings.simplefilter("ignore", UserWarning)
        model.fit(rows.cpu().numpy(), labels.cpu().numpy())
    weight, bias = (
        torch.from_numpy(each).to(rows.device) for each in (model.coef_.T, model.intercept_)
    )
    if len(seen) == 2:
        # scikit-learn has the weights of the second class alone, against 0 of the first
        weight, bias = (F.pad(each, (1, 0)) for each in (weight, bias))
    weight = weight if basis is None else basis.T @ weight
    return Probe(weight.to(features), bias.to(features), seen)


def classes_of(labels: Tensor) -> Tensor:
    """The classes that there are labels of, in order; −1 is none."""
    return torch.nonzero(torch.bincount(labels[labels >= 0])).flatten()
