"""Experts: the teacher's text and a probe on features, weighted by labels that neither saw.

p ∝ Π_m p_m^{w_m}. The weights, the probe's strength and the refinement on the pool are chosen by
predictions of labelled images that were held out of both. Pure tensors.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor
from torch.nn import functional as F

from kdpl.refinement.refine import RefinementConfig, affinity, nearest, refine
from kdpl.tasks import MULTI_CLASS

STRENGTHS = (30.0, 3.0, 300.0)
"""Inverse regularisations of the probe that are tried; the first where nothing can be tried."""

PRIOR = 3.0
"""Penalty of half the squared distance of each weight from 1, beside the log loss of the images."""

COST = 0.5
"""Nats of log loss that an expert must save to have a weight (docs/targets.md)."""

_FOLDS = 5


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

    seen = _classes_of(labels)
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


def combine(text: Tensor, probe: Tensor, classes: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the logarithms of p ∝ text^{w_0} · probe^{w_1} of all C classes, float [N, C].

    Classes that no label is of keep the text's probability, and the others share the rest.

    Args:
        text: The teacher's log probabilities, float [N, C].
        probe: Those of the probe's classes, float [N, S].
        classes: Labels of these classes, [S].
        weights: w of text and probe.
    """
    own = text[:, classes]
    mixed = MULTI_CLASS.log_probabilities(weights[0] * own + weights[1] * probe)
    return text.index_copy(1, classes, mixed + own.logsumexp(dim=1, keepdim=True))


def fit_weights(log_probabilities: Tensor, labels: Tensor) -> tuple[tuple[float, ...], float]:
    """Fit weights of experts by the log loss of predictions that did not see the labels.

    Each set of experts minimises Σ_i −log p_i(y_i) + ``PRIOR`` / 2 · Σ_m (w_m − 1)² over w ≥ 0, a
    convex problem. The set with the least log loss is taken, where each expert has to save
    ``COST``; the others have weight 0.

    Args:
        log_probabilities: Those of each expert, float [M, n, S].
        labels: Labels among the S classes, [n].

    Returns:
        The weights [M], and the log loss with the costs.
    """
    experts = log_probabilities.double().cpu().numpy()
    y, images = labels.cpu().numpy(), np.arange(len(labels))

    def loss(
        weights: NDArray[np.float64], own: NDArray[np.float64], penalty: float
    ) -> tuple[float, Any]:
        logits, away = np.tensordot(weights, own, 1), weights - 1
        totals = logsumexp(logits, axis=1, keepdims=True)
        residual = np.exp(logits - totals)
        residual[images, y] -= 1
        value = (totals[:, 0] - logits[images, y]).sum() + penalty / 2 * (away**2).sum()
        return value, (own * residual).sum(axis=(1, 2)) + penalty * away

    options = []
    for number in range(1, len(experts) + 1):
        for chosen in combinations(range(len(experts)), number):
            own, bounds = experts[[*chosen]], [(0, None)] * number
            found = minimize(
                loss, np.ones(number), (own, PRIOR), "L-BFGS-B", jac=True, bounds=bounds
            )
            weights = np.zeros(len(experts))
            weights[[*chosen]] = found.x
            value, _ = loss(found.x, own, 0)
            options.append((tuple(weights.tolist()), float(value) + COST * number))
    return min(options, key=lambda fitted: fitted[1])


@dataclass(frozen=True)
class Evidence:
    """What is known of N images, labelled, unlabelled, and for validation.

    Attributes:
        features: An encoder's features, float [N, D].
        text: The teacher's log probabilities, float [N, C].
        labels: Classes of labelled images, whose assignment stays the label, and −1, int64 [N].
        held_out: Classes of validation images, whose labels only choose, and −1, int64 [N].
        trusted: Whether the teacher has not seen the labels, as a zero-shot one; otherwise
            validation images alone tell how good it is.
    """

    features: Tensor
    text: Tensor
    labels: Tensor
    held_out: Tensor
    trusted: bool

    @property
    def truth(self) -> Tensor:
        """Classes of labelled and validation images, and −1, [N]."""
        return torch.where(self.labels >= 0, self.labels, self.held_out)


@dataclass(frozen=True)
class Assigned:
    """Assignments of images to classes, and how they were chosen.

    Attributes:
        assignments: Probabilities, float [N, C].
        weights: Those of text and probe.
        strength: The probe's; None without labels.
        refinement: Settings of the refinement; None where the experts alone were better.
        right: Shares of the images that chose on which the teacher and the result are right; None
            without such images.
        judges: Number of these images.
    """

    assignments: Tensor
    weights: tuple[float, ...]
    strength: float | None
    refinement: RefinementConfig | None
    right: tuple[float, float] | None
    judges: int

    def describe(self) -> str:
        """Return the choice and how good it is, as a clause."""
        parts = []
        if self.strength is not None:
            text, probe = self.weights
            parts.append(f"weights {text:.2f} of the teacher, {probe:.2f} of the probe")
        if self.refinement is None:
            parts.append("not refined, as that was no better")
        else:
            own = self.refinement
            parts.append(f"refined with ω {own.likelihood}, γ {own.graph}, λ {own.prior}")
        if self.right is None:
            parts.append("there are no labels to measure it on")
        else:
            before, after = (100 * share for share in self.right)
            parts.append(
                f"right on {after:.1f} % of {self.judges} labelled images that it had not seen, "
                f"the teacher on {before:.1f} %"
            )
        return "; ".join(parts)


class _Split(NamedTuple):
    """Labels [N] that experts may see, and images that judge them, which may not be of these."""

    labels: Tensor
    judges: Tensor


def assign(
    evidence: Evidence,
    config: RefinementConfig,
    on_step: Callable[[int, int], object] = lambda done, total: None,  # noqa: ARG005
) -> Assigned:
    """Assign images to classes by the experts, refined on all images where that is better.

    Each labelled image judges experts and refinements that were made without its label, in five
    folds, and each validation image those that were made of all labels. Probe and weights are
    those of the least log loss, the refinement is that of the most images that are right.

    Args:
        evidence: What is known.
        config: Settings of the refinement, of which ``candidates`` are tried.
        on_step: Called with the number of refinements done, and of all.
    """
    splits = _splits(evidence)
    features = standardize(evidence.features)
    unit = F.normalize(features, dim=1)
    neighbors = affinity(*nearest(unit, config.neighbors))

    # the experts, weighted
    strength, weights, predictions = _experts(evidence, splits, features)

    # refinements of their predictions, and these themselves
    judges, truth = torch.cat([split.judges for split in splits]), evidence.truth
    shots = int((evidence.labels >= 0).sum()) / max(len(_classes_of(evidence.labels)), 1)
    tried: list[RefinementConfig | None] = [*config.candidates(shots)]
    # without a label that judges, the first is taken
    tried = [*tried, None] if config.mode == "auto" and len(judges) else tried[:1]
    total = len(tried) * len(splits)
    results, right = [], []
    for number, candidate in enumerate(tried):
        hits = []
        for k, (split, predicted) in enumerate(zip(splits, predictions, strict=True)):
            if candidate is not None:
                z = refine(unit, predicted, neighbors, split.labels, candidate)
            else:
                known = (split.labels >= 0)[:, None]
                fixed = F.one_hot(split.labels.clamp_min(0), predicted.shape[1]).to(predicted)
                z = torch.where(known, fixed, predicted)
            hits.append(MULTI_CLASS.labels(z[split.judges]) == truth[split.judges])
            on_step(number * len(splits) + k + 1, total)
        results.append(z)  # of the last split, which has all labels
        right.append(torch.cat(hits))
    before = MULTI_CLASS.labels(evidence.text[judges]) == truth[judges]
    best = _choose(right, tried[-1] is None, int(before.sum()))

    shares = None
    if len(judges):
        shares = before.float().mean().item(), right[best].float().mean().item()
    return Assigned(results[best], weights, strength, tried[best], shares, len(judges))


def _choose(right: Sequence[Tensor], alone: bool, before: int) -> int:
    """Return which refinement is right on most judges, by bool [judges] of each.

    Of equals it is the first. If the last is that of the experts ``alone``, these are chosen only
    where they are right on more, by over a standard error of the difference: a refinement helps
    classes of few labels most, and few labels are there to judge those. Or where they are as good
    as the teacher, which is right on ``before`` of the judges, and the refinement is not.
    """
    totals = [int(hits.sum()) for hits in right]
    refined = totals[:-1] if alone else totals
    best = refined.index(max(refined))
    if alone:
        differing = int((right[-1] ^ right[best]).sum())
        better = totals[-1] - totals[best] > differing**0.5
        if better or totals[best] < before <= totals[-1]:
            return len(right) - 1
    return best


def _experts(
    evidence: Evidence, splits: list[_Split], features: Tensor
) -> tuple[float | None, tuple[float, ...], list[Tensor]]:
    """Return strength, weights, and the weighted predictions [N, C] of each split."""
    seen = _classes_of(evidence.labels)
    if not len(seen):
        return None, (1.0,), [MULTI_CLASS.probabilities(evidence.text) for _ in splits]
    truth = evidence.truth
    judges = [split.judges[torch.isin(truth[split.judges], seen)] for split in splits]
    rows = torch.cat(judges)

    # the least log loss on images that the experts have not seen
    options = []
    for strength in STRENGTHS if len(rows) else STRENGTHS[:1]:
        probes = []
        for split in splits:
            known = split.labels >= 0
            fitted = fit_probe(features[known], split.labels[known], strength)
            probes.append(fitted.log_probabilities(features))
        weights: tuple[float, ...] = (1.0, 1.0)
        loss = 0.0
        if len(rows):
            text = MULTI_CLASS.log_probabilities(evidence.text[rows][:, seen])
            probe = torch.cat([each[of] for each, of in zip(probes, judges, strict=True)])
            labels = torch.searchsorted(seen, truth[rows])
            weights, loss = fit_weights(torch.stack([text, probe]), labels)
        options.append((loss, strength, weights, probes))
    _, strength, weights, probes = min(options, key=lambda option: option[0])
    mixed = [combine(evidence.text, probe, seen, weights).exp() for probe in probes]
    return strength, weights, mixed


def _splits(evidence: Evidence) -> list[_Split]:
    """The folds of the labels, unless the teacher has seen them; last, all labels."""
    labels = evidence.labels
    whole = _Split(labels, torch.nonzero(evidence.held_out >= 0).flatten())
    if not evidence.trusted or not (labels >= 0).any():
        return [whole]
    # the place of each image within its class, by a feature and not by the order of the images; a
    # class with one image has none to spare
    known = torch.nonzero(labels >= 0).flatten()
    known = known[evidence.features[known, 0].argsort()]
    one_hot = F.one_hot(labels[known])
    places = (one_hot.cumsum(dim=0) * one_hot).sum(dim=1) - 1
    spare = (one_hot.sum(dim=0) > 1)[labels[known]]
    folds = torch.full_like(labels, -1)
    folds[known[spare]] = places[spare] % _FOLDS
    parts = [torch.nonzero(folds == fold).flatten() for fold in range(_FOLDS)]
    return [*(_Split(labels.index_fill(0, part, -1), part) for part in parts if len(part)), whole]


def _classes_of(labels: Tensor) -> Tensor:
    """The classes that there are labels of, in order; −1 is none."""
    return torch.nonzero(torch.bincount(labels[labels >= 0])).flatten()
