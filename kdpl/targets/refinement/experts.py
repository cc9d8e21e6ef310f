"""Experts: the teacher's text and a probe on features, weighted by labels that neither saw.

p ∝ Π_m p_m^{w_m}. The weights, the probe's strength and the refinement on the pool are chosen by
predictions of labelled images that were held out of both. Pure tensors.
"""

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

from kdpl.data.groups import FOLDS, folds
from kdpl.data.probe import CHOOSING, STRENGTHS, classes_of, fit_probe
from kdpl.targets.refinement.refine import (
    RefinementConfig,
    Weights,
    affinity,
    candidates,
    nearest,
    refine,
    standardize,
)
from kdpl.tasks import MULTI_CLASS

PRIOR = 3.0
"""Penalty on half the squared distance of each weight from 1, added to the images' log loss."""

COST = 0.5
"""Nats of log loss that an expert must save to have a weight (docs/targets.md)."""


def combine(text: Tensor, probe: Tensor, classes: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the logarithms of p ∝ text^{w_0} · probe^{w_1} of all C classes, float [N, C].

    Classes without a label keep the text's probability, and the other classes share the rest.

    Args:
        text: The teacher's log probabilities, float [N, C].
        probe: The log probabilities of the probe's S classes, float [N, S].
        classes: Labels of the probe's classes, [S].
        weights: Weights w of text and probe.
    """
    text_part = text[:, classes]
    mixed = MULTI_CLASS.log_probabilities(weights[0] * text_part + weights[1] * probe)
    return text.index_copy(1, classes, mixed + text_part.logsumexp(dim=1, keepdim=True))


def fit_weights(
    log_probabilities: Tensor, labels: Tensor, counts: Tensor
) -> tuple[tuple[float, ...], float]:
    """Fit weights of experts by the log loss of predictions that did not see the labels.

    Each set of experts minimises Σ_i c_i · −log p_i(y_i) + ``PRIOR`` / 2 · Σ_m (w_m − 1)² over
    w ≥ 0, a convex problem. The set with the least log loss is taken, where each expert has to save
    ``COST``; the others have weight 0.

    Args:
        log_probabilities: Log probabilities by each expert, float [M, n, S].
        labels: Labels among the S classes, [n].
        counts: How much each image counts, c [n].

    Returns:
        The weights [M], and the log loss with the costs.
    """
    experts = log_probabilities.double().cpu().numpy()
    y, images = labels.cpu().numpy(), np.arange(len(labels))
    c = counts.double().cpu().numpy()

    def loss(
        weights: NDArray[np.float64], chosen: NDArray[np.float64], penalty: float
    ) -> tuple[float, Any]:
        logits, away = np.tensordot(weights, chosen, 1), weights - 1
        totals = logsumexp(logits, axis=1, keepdims=True)
        residual = np.exp(logits - totals)
        residual[images, y] -= 1
        value = c @ (totals[:, 0] - logits[images, y]) + penalty / 2 * (away**2).sum()
        return value, (chosen * residual).sum(axis=2) @ c + penalty * away

    options = []
    for number in range(1, len(experts) + 1):
        for members in combinations(range(len(experts)), number):
            chosen, bounds = experts[[*members]], [(0, None)] * number
            minimum = minimize(
                loss, np.ones(number), (chosen, PRIOR), "L-BFGS-B", jac=True, bounds=bounds
            )
            weights = np.zeros(len(experts))
            weights[[*members]] = minimum.x
            value, _ = loss(minimum.x, chosen, 0)
            options.append((tuple(weights.tolist()), float(value) + COST * number))
    return min(options, key=lambda fitted: fitted[1])


@dataclass(frozen=True)
class Evidence:
    """Features, predictions and labels of N labelled, unlabelled and validation images.

    Attributes:
        features: An encoder's features, whose neighbours refine, float [N, D].
        probed: The encoder's normalised features that the probe reads, float [N, D].
        log_probabilities: The logarithms of the teacher's probabilities, float [N, C].
        labels: Classes of labelled images, which stay as they are; −1 for others, int64 [N].
        validation: Classes of validation images, which only choose; −1 for others, int64 [N].
        groups: Group of each image as a number, int64 [N], such as bursts of near-copies; an image
            without one has a number of its own.
        trusted: Whether the teacher, such as a zero-shot one, has not seen the labels; otherwise
            only validation images tell how good it is.
    """

    features: Tensor
    probed: Tensor
    log_probabilities: Tensor
    labels: Tensor
    validation: Tensor
    groups: Tensor
    trusted: bool

    @property
    def truth(self) -> Tensor:
        """Classes of labelled and validation images; −1 for others, [N]."""
        return torch.where(self.labels >= 0, self.labels, self.validation)

    def merged(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Merge images [n] of the same group and class, which count as one image.

        Returns the index of each image's pair of group and class, [n], and the size of each of the
        P pairs, [P].
        """
        pairs = torch.stack([self.groups[images], self.truth[images]], dim=1)
        _, pair, sizes = torch.unique(pairs, dim=0, return_inverse=True, return_counts=True)
        return pair, sizes

    def share_of(self, hits: Tensor, images: Tensor) -> Tensor:
        """Return the share of hits [n] among the images [n] of each pair of ``merged``, [P]."""
        pair, sizes = self.merged(images)
        return torch.zeros_like(sizes, dtype=torch.float).index_add(0, pair, hits.float()) / sizes

    def labels_a_class(self, labels: Tensor) -> float:
        """Return the number of groups a class that have one of these labels [N], in the mean."""
        labeled = torch.nonzero(labels >= 0).flatten()
        return len(self.merged(labeled)[1]) / max(len(classes_of(self.labels)), 1)


@dataclass(frozen=True)
class Assigned:
    """Assignments of images to classes, and how they were chosen.

    Attributes:
        assignments: Probabilities, float [N, C].
        weights: Weights of text and probe.
        strength: The probe's regularisation; None without labels.
        refinement: Weights of the refinement; None where the experts alone were better.
        right: Accuracies of the teacher and of the result on the judging images; images of the
            same group and class count as one. None without judging images.
        judges: Number of judging images.
        groups: Number of their groups.
    """

    assignments: Tensor
    weights: tuple[float, ...]
    strength: float | None
    refinement: Weights | None
    right: tuple[float, float] | None
    judges: int
    groups: int

    def describe(self) -> str:
        """Return a clause that says what was chosen, and how accurate it is."""
        parts = []
        if self.strength is not None:
            text, probe = self.weights
            parts.append(
                f"the teacher's predictions have the weight {text:.2f}, those of a linear probe of "
                f"the labels {probe:.2f}"
            )
        if self.refinement is None:
            parts.append("similar images do not correct the predictions, as that was no better")
        else:
            likelihood, graph, prior = self.refinement
            weights = f"ω {likelihood}, γ {graph}, λ {prior}"
            parts.append(f"similar images correct the predictions ({weights})")
        if self.right is not None:
            before, after = (100 * share for share in self.right)
            groups = f" in {self.groups} groups" if self.groups < self.judges else ""
            parts.append(
                f"right on {after:.1f} % of the {self.judges} labelled images{groups} that chose "
                f"the settings, each predicted without its label, the teacher on {before:.1f} %"
            )
        elif self.strength is not None:
            parts.append(
                "not measured, as teacher or probe have seen all labels: add validation images"
            )
        else:
            parts.append("there are no labels to measure it on")
        return "; ".join(parts)


class _Split(NamedTuple):
    """Labels [N] that experts may see, and the indices of other images, which judge them."""

    labels: Tensor
    judges: Tensor


class Result(NamedTuple):
    """Assignments that saw a part of the labels.

    Attributes:
        refinement: Weights of the refinement; None for the experts alone.
        labels: Labels that were seen, [N].
        judges: Indices of images whose labels were not seen.
        assignments: Probabilities, float [N, C].
    """

    refinement: Weights | None
    labels: Tensor
    judges: Tensor
    assignments: Tensor


def assign(
    evidence: Evidence,
    config: RefinementConfig,
    on_result: Callable[[Result, int], object] = lambda result, total: None,  # noqa: ARG005
) -> Assigned:
    """Assign images to classes by the experts, refined on all images where that is better.

    Each labelled image judges experts and refinements that were made without the labels of its
    group (``kdpl.data.groups.folds``); each validation image judges the ones made from all labels.
    Probe and weights have the least log loss, and the refinement is right on the most images.
    Images of the same group and class count as one.

    Args:
        evidence: Features, predictions and labels.
        config: Settings of the refinement, whose weights are chosen among ``candidates``.
        on_result: Called with the result of each refinement, and the number of all.
    """
    splits = _splits(evidence)
    unit = F.normalize(standardize(evidence.features), dim=1)
    neighbors = affinity(*nearest(unit, config.neighbors, evidence.groups))

    # the experts, weighted
    shots = evidence.labels_a_class(evidence.labels)
    strength, weights, predictions = _experts(evidence, splits, shots)

    # the refinements to try, and the predictions without one
    judges, truth = torch.cat([split.judges for split in splits]), evidence.truth
    tried: list[Weights | None] = [*candidates(shots)]
    # without a judging image, the first is taken
    tried = [*tried, None] if config.mode == "auto" and len(judges) else tried[:1]

    # judge each on the images whose labels it has not seen
    results, right = [], []
    for candidate in tried:
        hits = []
        for split, predicted in zip(splits, predictions, strict=True):
            if candidate is not None:
                z = refine(unit, predicted, neighbors, split.labels, candidate, config.rounds)
            else:
                labeled = (split.labels >= 0)[:, None]
                fixed = F.one_hot(split.labels.clamp_min(0), predicted.shape[1]).to(predicted)
                z = torch.where(labeled, fixed, predicted)
            hits.append(MULTI_CLASS.labels(z[split.judges]) == truth[split.judges])
            on_result(Result(candidate, *split, z), len(tried) * len(splits))
        results.append(z)  # of the last split, which has all labels
        right.append(evidence.share_of(torch.cat(hits), judges))
    hits_before = MULTI_CLASS.labels(evidence.log_probabilities[judges]) == truth[judges]
    before = evidence.share_of(hits_before, judges)
    best = _choose(right, tried[-1] is None, before.sum().item())

    shares = (before.mean().item(), right[best].mean().item()) if len(judges) else None
    groups = len(torch.unique(evidence.groups[judges]))
    return Assigned(results[best], weights, strength, tried[best], shares, len(judges), groups)


def _choose(right: Sequence[Tensor], alone: bool, before: float) -> int:
    """Return the index of the candidate that is right on most judging images, the first of equals.

    With ``alone``, the last candidate is the unrefined experts. It is chosen only if (a) it beats
    the best refinement by more than a standard error of the difference, or (b) it is as good as the
    teacher, which is right on ``before`` images, and the best refinement is not. The margin in (a)
    favours refinement, which helps most where labels, and so judging images, are few. ``right`` has
    for each candidate the share of each judging image, float [judges].
    """
    totals = [shares.sum().item() for shares in right]
    refined = totals[:-1] if alone else totals
    best = refined.index(max(refined))
    if alone:
        differing = (right[-1] - right[best]).square().sum().item()
        better = totals[-1] - totals[best] > differing**0.5
        if better or totals[best] < before <= totals[-1]:
            return len(right) - 1
    return best


def _experts(
    evidence: Evidence, splits: list[_Split], shots: float
) -> tuple[float | None, tuple[float, ...], list[Tensor]]:
    """Return strength, weights, and the weighted predictions [N, C] of each split."""
    seen = classes_of(evidence.labels)
    if not len(seen):
        return None, (1.0,), [MULTI_CLASS.probabilities(evidence.log_probabilities) for _ in splits]
    truth = evidence.truth
    judges = [split.judges[torch.isin(truth[split.judges], seen)] for split in splits]
    rows = torch.cat(judges)
    pair, sizes = evidence.merged(rows)

    # find the least log loss on images that the experts have not seen; one label per class, or a
    # few validation images, cannot choose the probe's regularisation
    options = []
    for strength in STRENGTHS if len(rows) and shots >= CHOOSING else STRENGTHS[:1]:
        probes = []
        for split in splits:
            labeled = split.labels >= 0
            probes.append(fit_probe(evidence.probed[labeled], split.labels[labeled], strength))
        weights: tuple[float, ...] = (1.0, 1.0)
        loss = 0.0
        if len(rows):
            text = MULTI_CLASS.log_probabilities(evidence.log_probabilities[rows][:, seen])
            predicted = [
                probe.log_probabilities(evidence.probed[images])
                for probe, images in zip(probes, judges, strict=True)
            ]
            experts = torch.stack([text, torch.cat(predicted)])
            labels = torch.searchsorted(seen, truth[rows])
            weights, loss = fit_weights(experts, labels, 1 / sizes[pair])
        options.append((loss, strength, weights, probes))
    _, strength, weights, probes = min(options, key=lambda option: option[0])
    mixed = [
        combine(
            evidence.log_probabilities, probe.log_probabilities(evidence.probed), seen, weights
        ).exp()
        for probe in probes
    ]
    return strength, weights, mixed


def _splits(evidence: Evidence) -> list[_Split]:
    """Return the folds of the labels, unless the teacher has seen them; last, all labels."""
    labels = evidence.labels
    whole = _Split(labels, torch.nonzero(evidence.validation >= 0).flatten())
    if not evidence.trusted or not (labels >= 0).any():
        return [whole]
    # sort by a feature, so that folds do not depend on the order of the images
    labeled = torch.nonzero(labels >= 0).flatten()
    labeled = labeled[evidence.features[labeled, 0].argsort()]
    numbers = folds(labels[labeled].cpu().numpy(), evidence.groups[labeled].cpu().numpy())
    fold_of = torch.from_numpy(numbers).to(labeled.device)
    parts = [labeled[fold_of == fold] for fold in range(FOLDS) if (fold_of == fold).any()]
    return [*(_Split(labels.index_fill(0, part, -1), part) for part in parts), whole]
