"""The probe: a logistic regression of labels on the features of a frozen network. Pure tensors.

It is the baseline of every student, and an expert of refined targets. As in CLIP's paper (arXiv
2103.00020, appendix A.3), it reads the features before a projection into a joint space.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdpl.data.groups import folds
from kdpl.tasks import MULTI_CLASS

STRENGTHS = (10.0, 3.0, 30.0, 100.0, 300.0)
"""Values of C, the inverse of the regularisation; the first where nothing can choose."""

CHOOSING = 2
"""Labelled groups a class, in the mean, from which on C is chosen."""


_PENALTY = 0.05  # half the squared weights of the linear student, beside the sum of its losses


class Probe(NamedTuple):
    """Linear classifier of the S classes of the images that it was fitted on.

    Attributes:
        weight: float [D, S].
        bias: float [S].
        classes: Labels of the S classes, int64 [S].
    """

    weight: Tensor
    bias: Tensor
    classes: Tensor

    def log_probabilities(self, features: Tensor) -> Tensor:
        """Return the logarithms of the probabilities of its classes, float [N, S]."""
        return MULTI_CLASS.log_probabilities(features @ self.weight + self.bias)


def scale_of(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean [D] and deviation [] of features [n, D]: the root of the variances' sum."""
    mean = features.mean(dim=0)
    variance = (features - mean).square().sum() / max(len(features) - 1, 1)
    return mean, variance.sqrt().clamp_min(1e-6)


def fit_probe(features: Tensor, labels: Tensor, strength: float) -> Probe:
    """Fit a logistic regression: C · Σ_i c_i · −log p_i(y_i) + ½ Σ w², free biases.

    The features are normalised, and here centred and scaled as a whole by ``scale_of``. The weight
    c_i of an image is n / (S · n_y) with n_y of the n images in its class, so that each class
    counts alike: its number of labels often says more about the labelling than about the domain.

    Args:
        features: Normalised features of labelled images, float [n, D].
        labels: Their labels, [n].
        strength: C.
    """
    seen = classes_of(labels)
    if len(seen) == 1:
        return Probe(features.new_zeros(features.shape[1], 1), features.new_zeros(1), seen)
    rows, basis = features.double(), None
    mean, deviation = scale_of(rows)
    rows = (rows - mean) / deviation
    if rows.shape[0] < rows.shape[1]:
        # the weights of the minimum lie in the span of the images, which has fewer dimensions
        left, values, basis = torch.linalg.svd(rows, full_matrices=False)
        rows = left * values
    weight, bias, _ = logistic_regression(rows, labels, strength, balanced=True, tolerance=1e-6)
    weight = (weight if basis is None else basis.T @ weight) / deviation
    return Probe(weight.to(features), (bias - mean @ weight).to(features), seen)


def logistic_regression(
    rows: Tensor, labels: Tensor, strength: float, balanced: bool = False, tolerance: float = 1e-4
) -> Probe:
    """Fit scikit-learn's logistic regression to rows [n, D] as they are.

    Args:
        rows: Features, centred and scaled, in the precision of the fit.
        labels: Labels of at least two classes, [n].
        strength: C.
        balanced: Weight images so that each class counts alike.
        tolerance: Largest gradient at which the fit stops.
    """
    from sklearn.linear_model import LogisticRegression

    weighting = "balanced" if balanced else None
    model = LogisticRegression(C=strength, class_weight=weighting, max_iter=1000, tol=tolerance)
    with warnings.catch_warnings():
        # that classes are many for so few images, and that separable ones have no largest weights
        warnings.simplefilter("ignore", UserWarning)
        model.fit(rows.cpu().numpy(), labels.cpu().numpy())
    weight, bias = torch.from_numpy(model.coef_.T).to(rows), torch.from_numpy(model.intercept_)
    if len(model.classes_) == 2:
        # scikit-learn has the weights of the second class alone, against 0 of the first
        weight, bias = F.pad(weight, (1, 0)), F.pad(bias, (1, 0))
    return Probe(weight, bias.to(rows), torch.from_numpy(model.classes_))


def choose_strength(features: Tensor, labels: Tensor, groups: Tensor) -> tuple[float, str]:
    """Choose C by the log loss of labelled images in folds of their groups; also say how.

    It is the first of ``STRENGTHS`` where there are fewer than ``CHOOSING`` groups of a class.
    Takes features and labels as ``fit_probe`` does; ``groups`` [n] are numbers.
    """
    fold_of = torch.from_numpy(folds(labels.cpu().numpy(), groups.cpu().numpy())).to(labels.device)
    pairs = torch.unique(torch.stack([groups, labels]), dim=1).shape[1]
    if pairs < CHOOSING * len(classes_of(labels)) or fold_of.max() < 0:
        return STRENGTHS[0], f"not chosen, with fewer than {CHOOSING} labelled groups a class"
    losses = [held_out_loss(features, labels, fold_of, strength) for strength in STRENGTHS]
    how = f"chosen by {int(fold_of.max()) + 1}-fold cross-validation on the labelled images"
    return STRENGTHS[int(np.argmin(losses))], how


def held_out_loss(features: Tensor, labels: Tensor, fold_of: Tensor, strength: float) -> float:
    """Return the log loss of images by probes of the other folds; fold −1 does not count."""
    loss = 0.0
    for fold in range(int(fold_of.max()) + 1):
        judged = fold_of == fold
        probe = fit_probe(features[~judged], labels[~judged], strength)
        rows = probe.log_probabilities(features[judged])
        numbers = torch.searchsorted(probe.classes, labels[judged])
        loss += F.nll_loss(rows, numbers, reduction="sum").item()
    return loss


def linear_student(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Fit weights [W, C] and biases [C] for features [N, W] to distributions [N, C], by L-BFGS."""
    mean, deviation = scale_of(features)
    rows = (features - mean) / deviation
    weight = rows.new_zeros(rows.shape[1], targets.shape[1], requires_grad=True)
    bias = rows.new_zeros(targets.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        log_probabilities = MULTI_CLASS.log_probabilities(rows @ weight + bias)
        loss = _PENALTY * weight.square().sum() - (targets * log_probabilities).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    scaled = weight.detach() / deviation
    return scaled, bias.detach() - mean @ scaled


def classes_of(labels: Tensor) -> Tensor:
    """Return the classes that have labels, in order; −1 is no label."""
    return torch.nonzero(torch.bincount(labels[labels >= 0])).flatten()
