"""Refined targets by one rule: text and probe, weighted by labels that neither saw, and refined.

p ∝ text^a · probe^b is refined on the pool in several ways, which are mixed by their hits on
labelled images that were held out of them. Pure tensors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor

from kdpl.data.groups import folds
from kdpl.data.probe import CHOOSING, STRENGTHS, Probe, classes_of, fit_probe
from kdpl.targets.refinement.refine import REFINEMENTS, RefinementConfig, find_space
from kdpl.tasks import MULTI_CLASS

PRIOR = 3.0
"""Penalty on half the squared distance of each weight from 1, added to the images' log loss."""

COST = 0.5
"""Nats of log loss that an expert must save to have a weight (docs/targets.md)."""

_UNFITTED = (1.0, 1.0)


def combine(text: Tensor, probe: Tensor, classes: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the logarithms of p ∝ text^{w_0} · probe^{w_1} of all C classes, float [N, C].

    ``text`` [N, C] and ``probe`` [N, S] are log probabilities, the latter of S ``classes`` [S].
    Classes without a label keep the text's probability, and the other classes share the rest.
    """
    part = text[:, classes]
    mixed = MULTI_CLASS.log_probabilities(weights[0] * part + weights[1] * probe)
    return text.index_copy(1, classes, mixed + part.logsumexp(dim=1, keepdim=True))


def fit_weights(
    log_probabilities: Tensor, labels: Tensor, counts: Tensor
) -> tuple[tuple[float, ...], float]:
    """Fit weights of two experts by the log loss of predictions that did not see the labels.

    Both, or one alone, minimise Σ_i c_i · −log p_i(y_i) + ``PRIOR`` / 2 · Σ_m (w_m − 1)² over
    w ≥ 0, a convex problem. The option with the least log loss is taken, where each expert has to
    save ``COST``; an expert that is left out has the weight 0.

    Args:
        log_probabilities: Log probabilities by each expert, float [2, n, S].
        labels: Labels among the S classes, [n].
        counts: How much each image counts, c [n].

    Returns:
        The weights [2], and the log loss with the costs.
    """
    experts, c = log_probabilities.double().cpu().numpy(), counts.double().cpu().numpy()
    y, images = labels.cpu().numpy(), np.arange(len(labels))

    def loss(weights: NDArray[np.float64], penalty: float = PRIOR) -> tuple[float, Any]:
        logits, away = np.tensordot(weights, experts, 1), weights - 1
        totals = logsumexp(logits, axis=1, keepdims=True)
        residual = np.exp(logits - totals)
        residual[images, y] -= 1
        value = c @ (totals[:, 0] - logits[images, y]) + penalty / 2 * (away**2).sum()
        return value, (experts * residual).sum(axis=2) @ c + penalty * away

    options = []
    for used in ((1, 0), (0, 1), (1, 1)):
        bounds = [(0, None if part else 0) for part in used]
        weights = minimize(loss, np.array(used, float), jac=True, bounds=bounds).x
        options.append((tuple(weights.tolist()), loss(weights, 0)[0] + COST * sum(used)))
    return min(options, key=lambda option: option[1])


@dataclass(frozen=True)
class Evidence:
    """Features, predictions and labels of N labelled, unlabelled and validation images.

    Attributes:
        features: Features of one or more encoders side by side, whose neighbours refine, float
            [N, D].
        probed: Their normalised features that the probe reads, float [N, D].
        log_probabilities: The logarithms of the teacher's probabilities, float [N, C].
        labels: Classes of labelled images, which stay as they are; −1 for others, int64 [N].
        validation: Classes of validation images, which only judge; −1 for others, int64 [N].
        groups: Group of each image as a number, int64 [N], such as bursts of near-copies; an image
            without one has a number of its own.
        trusted: Whether the teacher has not seen the labels; otherwise validation images judge.
        widths: Number of dimensions of each encoder; empty for one encoder.
    """

    features: Tensor
    probed: Tensor
    log_probabilities: Tensor
    labels: Tensor
    validation: Tensor
    groups: Tensor
    trusted: bool
    widths: tuple[int, ...] = ()

    @property
    def truth(self) -> Tensor:
        """Classes of labelled and validation images; −1 for others, [N]."""
        return torch.where(self.labels >= 0, self.labels, self.validation)

    @property
    def pairs(self) -> Tensor:
        """Number of each image's pair of group and class, which counts as one image, [N]."""
        rows = torch.stack([self.groups, self.truth])
        numbers: Tensor = torch.unique(rows, dim=1, return_inverse=True)[1]
        return numbers

    @property
    def counts(self) -> Tensor:
        """How much an image counts: 1 over the images of its pair, float [N]."""
        pairs = self.pairs
        return pairs.bincount()[pairs].float().reciprocal()


@dataclass(frozen=True)
class Assigned:
    """Assignments of images to classes, and how they were chosen.

    Attributes:
        assignments: Probabilities, float [N, C].
        weights: Weights of text and probe.
        strength: The probe's regularisation; None without labels.
        shares: Share of each refinement.
        right: Accuracies of the teacher and of the result on the images that judged; None without.
        judges: Number of these images, where those of a group and class count as one.
    """

    assignments: Tensor
    weights: tuple[float, ...] = (1.0, 0.0)
    strength: float | None = None
    shares: tuple[float, ...] = (1.0,)
    right: tuple[float, float] | None = None
    judges: int = 0


class Split(NamedTuple):
    """Labels [N] that experts may see, and the indices of other images, which judge them."""

    labels: Tensor
    judges: Tensor


def assign(
    evidence: Evidence,
    config: RefinementConfig,
    advance: Callable[[int], object] = lambda total: None,  # noqa: ARG005
) -> Assigned:
    """Assign images to classes by text and probe, refined on all images.

    Each labelled image judges experts and refinements that were made without the labels of its
    group (``kdpl.data.groups.folds``); each validation image judges the ones made from all labels.
    The probe's strength, and the weights of text and probe, have the least log loss. The
    refinements are mixed by the number of images that they are right on. ``advance`` is called
    after each refinement with the number of all.
    """
    text, labels, truth = evidence.log_probabilities, evidence.labels, evidence.truth
    features, probed, groups = evidence.features, evidence.probed, evidence.groups
    widths = [*evidence.widths] or [features.shape[1]]
    space = find_space(features, probed, widths, text.exp(), groups, config)
    seen, counts = classes_of(labels), evidence.counts
    if not len(seen):
        return Assigned(space.refine(text.exp(), labels, REFINEMENTS[0], config.rounds))

    # without two labels a class, nothing judges, and the first refinement is taken
    splits = _splits(evidence)
    judges = torch.cat([split.judges for split in splits])
    judged = len(judges) > 0 and counts[truth >= 0].sum() >= CHOOSING * len(seen)
    fitted = [
        _fit(evidence, space.probed, splits, strength)
        for strength in (STRENGTHS if judged else STRENGTHS[:1])
    ]
    _, strength, weights, probes = min(fitted, key=lambda option: option[0])
    weights = weights if judged else _UNFITTED

    # judge each on the images whose labels it has not seen
    results, held_out = [], []
    tried = REFINEMENTS if judged else REFINEMENTS[:1]
    for number, refinement in enumerate(tried):
        # the first refinement is strong, and fitted weights make it too sure
        used, rows = weights if number else _UNFITTED, []
        for split, probe in zip(splits, probes, strict=True):
            experts = combine(text, probe.log_probabilities(space.probed), probe.classes, used)
            z = space.refine(experts.exp(), split.labels, refinement, config.rounds)
            rows.append(z[split.judges])
            advance(len(tried) * len(splits))
        results.append(z)  # of the last split, which has all labels
        held_out.append(torch.cat(rows))

    def hits(rows: Tensor) -> Tensor:
        return ((MULTI_CLASS.labels(rows) == truth[judges]) * counts[judges]).sum()

    # one standard deviation more of hits, at the most, changes a share by the factor e
    total = counts[judges].sum()
    scores = 2 * torch.stack([hits(rows) for rows in held_out]) / total.clamp_min(1).sqrt()
    shares = MULTI_CLASS.probabilities(scores[None])[0].tolist()
    right = None
    if len(judges):
        before, after = hits(text[judges]) / total, hits(mix(held_out, shares)) / total
        right = before.item(), after.item()
    z = mix(results, shares)
    return Assigned(z, weights, strength, tuple(shares), right, round(total.item()))


def mix(parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the sum of tensors, each times its share."""
    mixed = torch.zeros_like(parts[0])
    for part, share in zip(parts, shares, strict=True):
        mixed += share * part
    return mixed


def _fit(
    evidence: Evidence, probed: Tensor, splits: Sequence[Split], strength: float
) -> tuple[float, float, tuple[float, ...], list[Probe]]:
    """Return log loss, strength, weights of text and probe, and the probe of each split."""
    seen, truth = classes_of(evidence.labels), evidence.truth
    probes, rows, images = [], [], []
    for labels, judges in splits:
        probes.append(fit_probe(probed[labels >= 0], labels[labels >= 0], strength))
        images.append(judges[torch.isin(truth[judges], seen)])
        rows.append(probes[-1].log_probabilities(probed[images[-1]]))
    judges = torch.cat(images)
    if not len(judges):
        return 0.0, strength, _UNFITTED, probes
    text = MULTI_CLASS.log_probabilities(evidence.log_probabilities[judges][:, seen])
    labels = torch.searchsorted(seen, truth[judges])
    weights, loss = fit_weights(
        torch.stack([text, torch.cat(rows)]), labels, evidence.counts[judges]
    )
    return loss, strength, weights, probes


def _splits(evidence: Evidence) -> list[Split]:
    """Return the folds of the labels, unless the teacher has seen them; last, all labels."""
    labels, parts = evidence.labels, list[Tensor]()
    if evidence.trusted:
        # sort by a feature, so that folds do not depend on the order of the images
        labeled = torch.nonzero(labels >= 0).flatten()
        labeled = labeled[evidence.features[labeled, 0].argsort()]
        numbers = folds(labels[labeled].cpu().numpy(), evidence.groups[labeled].cpu().numpy())
        fold_of = torch.from_numpy(numbers).to(labeled.device)
        parts = [labeled[fold_of == fold] for fold in range(int(fold_of.max()) + 1)]
    validation = torch.nonzero(evidence.validation >= 0).flatten()
    held_out = [Split(labels.index_fill(0, part, -1), part) for part in parts if len(part)]
    return [*held_out, Split(labels, validation)]
