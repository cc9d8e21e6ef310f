"""Experts: the teacher's text and a probe on features, weighted by labels that neither saw.

p ∝ Π_m p_m^{w_m}. The weights, the probe's strength and the refinement on the pool are chosen by
predictions of labelled images that were held out of both. Pure tensors.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from kdpl.data.probe import CHOOSING, STRENGTHS, Probe, classes_of, fit_probe
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

AGREEMENT = 0.5
"""Least agreement of an encoder's neighbours with the words, as a share of the best encoder's."""

SAME = 0.75
"""Least share of images on which two encoders' refinements agree if the Gaussians of both count."""

COHERENT = 0.1
"""Agreement of neighbours on the words, above which labels that fit nothing are ignored."""

_SHOWN = 0.005  # least share to name


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
        features: Features of one or more encoders side by side, whose neighbours refine, float
            [N, D].
        probed: Their normalised features that the probe reads, float [N, D].
        log_probabilities: The logarithms of the teacher's probabilities, float [N, C].
        labels: Classes of labelled images, which stay as they are; −1 for others, int64 [N].
        validation: Classes of validation images, which only choose; −1 for others, int64 [N].
        groups: Group of each image as a number, int64 [N], such as bursts of near-copies; an image
            without one has a number of its own.
        trusted: Whether the teacher, such as a zero-shot one, has not seen the labels; otherwise
            only validation images tell how good it is.
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
        shares: Share of each refinement in the assignments, of None that of the experts alone.
        right: Accuracies of the teacher and of the result on the judging images; images of the
            same group and class count as one. None without judging images.
        judges: Number of judging images.
        groups: Number of their groups.
        ignored: Whether labels were ignored, as nothing predicts them better than chance.
    """

    assignments: Tensor
    weights: tuple[float, ...]
    strength: float | None
    shares: dict[Weights | None, float]
    right: tuple[float, float] | None
    judges: int
    groups: int
    ignored: bool = False

    def describe(self) -> str:
        """Return a clause that says what was chosen, and how accurate it is."""
        parts = []
        if self.strength is not None:
            text, probe = self.weights
            parts.append(
                f"the teacher's predictions have the weight {text:.2f}, those of a linear probe of "
                f"the labels {probe:.2f}"
            )
        shares = [
            (f"ω {w.likelihood}, γ {w.graph}, λ {w.prior}" if w else "not at all")
            + f": {share:.0%}"
            for w, share in self.shares.items()
            if share >= _SHOWN
        ]
        refined = "; ".join(shares).removesuffix(": 100%")
        if refined == "not at all":
            parts.append("similar images do not correct the predictions, as that was no better")
        else:
            parts.append(f"similar images correct the predictions ({refined})")
        if self.ignored:
            parts.append("the labels are not used, as nothing predicts them better than chance")
        elif self.right is not None:
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
    Probe and weights have the least log loss. If the teacher has not seen the labels, the
    refinements are mixed by the number of images that they are right on; otherwise the best one is
    taken. Images of the same group and class count as one.

    Args:
        evidence: Features, predictions and labels.
        config: Settings of the refinement, whose weights are chosen among ``candidates``.
        on_result: Called with the result of each refinement, and the number of all.
    """
    spaces = find_spaces(evidence, config)
    splits, truth, text = _splits(evidence), evidence.truth, evidence.log_probabilities
    judges = torch.cat([split.judges for split in splits])

    # the experts, weighted
    shots = evidence.labels_a_class(evidence.labels)
    mixed = evidence.trusted
    judged = len(judges) > 0 and (not mixed or evidence.labels_a_class(truth) >= CHOOSING)
    strength, weights, probes = _experts(evidence, spaces.probed, splits, shots)
    plain = _unfitted(evidence) if mixed else weights

    # the refinements to try, and the predictions without one
    settings = candidates(0 if mixed and not judged else shots, mixed and judged)
    # without a judging image, the first is taken
    tried: list[Weights | None] = [*settings, None] if judged else [settings[0]]

    # judge each on the images whose labels it has not seen
    results, predicted = [], []
    for number, candidate in enumerate(tried):
        rows = []
        for split, probe in zip(splits, probes, strict=True):
            # few labels cannot fit weights: the first goes without
            used = plain if number == 0 else weights
            experts = _combined(text, probe, spaces.probed, used)
            z = _refined(spaces, experts, split.labels, candidate, config.rounds)
            rows.append(z[split.judges])
            on_result(Result(candidate, *split, z), len(tried) * len(splits))
        results.append(z)  # of the last split, which has all labels
        predicted.append(torch.cat(rows))

    def right(rows: Tensor) -> Tensor:
        return evidence.share_of(MULTI_CLASS.labels(rows) == truth[judges], judges)

    before, hits = right(text[judges]), [right(rows) for rows in predicted]
    if mixed:
        # the largest standard deviation of the number of hits changes a share by the factor e
        totals = torch.stack([shares.sum() for shares in hits])
        parts = (2 * totals / max(len(before), 1) ** 0.5).softmax(dim=0).tolist()
    else:
        best = _choose(hits, tried[-1] is None, before.sum().item())
        parts = [float(number == best) for number in range(len(tried))]
    after, share = right(mix(predicted, parts)), 1.0
    if mixed and judged and spaces.agreement > COHERENT:
        # words that fit the images, and labels that nothing fits
        share = (truth[judges].bincount() / len(judges)).square().sum().item()
    by_chance = share * len(before)
    if after.sum() <= by_chance + 3 * (by_chance * (1 - share)) ** 0.5 < len(before) / 2:
        none = torch.full_like(truth, -1)
        without = replace(evidence, labels=none, validation=none)
        return replace(assign(without, config), ignored=True)
    accuracies = (before.mean().item(), after.mean().item()) if len(judges) else None
    return Assigned(
        mix(results, parts),
        weights if judged else plain,
        strength,
        dict(zip(tried, parts, strict=True)),
        accuracies,
        len(judges),
        len(torch.unique(evidence.groups[judges])),
    )


def _combined(
    text: Tensor, probe: Probe | None, probed: Tensor, weights: Sequence[float]
) -> Tensor:
    """Return the probabilities of the weighted experts, of the text alone without a probe."""
    if probe is None:
        return MULTI_CLASS.probabilities(text)
    return combine(text, probe.log_probabilities(probed), probe.classes, weights).exp()


def _refined(
    spaces: "Spaces", experts: Tensor, labels: Tensor, weights: Weights | None, rounds: int
) -> Tensor:
    """Refine predictions [N, C] with these weights, or only set the labels [N] without any."""
    if weights is not None:
        return refine(spaces.gaussian, experts, spaces.neighbors, labels, weights, rounds)
    fixed = F.one_hot(labels.clamp_min(0), experts.shape[1]).to(experts)
    return torch.where((labels >= 0)[:, None], fixed, experts)


def mix(parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the sum of tensors, each times its share."""
    mixed = torch.zeros_like(parts[0])
    for part, share in zip(parts, shares, strict=True):
        mixed += share * part
    return mixed


class Spaces(NamedTuple):
    """Features of the encoders that count, side by side, and the neighbours in them.

    Attributes:
        gaussian: Normalised features of the classes' Gaussians, float [N, D].
        neighbors: The result of ``affinity``, sparse [N, N].
        probed: Normalised features that the probe reads, float [N, D].
        agreement: How much oftener than by chance neighbours share their most probable class.
    """

    gaussian: Tensor
    neighbors: Tensor
    probed: Tensor
    agreement: float


def find_spaces(evidence: Evidence, config: RefinementConfig) -> Spaces:
    """Join the encoders that agree with the teacher's words, without a label.

    An encoder counts if its neighbours share their most probable class at least ``AGREEMENT`` times
    as often as those of the best encoder, beyond chance. Its Gaussians count if refinement by it
    alone agrees with that by the first one on the share ``SAME`` of the images.
    """

    def graph(unit: Tensor) -> tuple[Tensor, Tensor]:
        return nearest(unit, config.neighbors, evidence.groups)

    widths = list(evidence.widths) or [evidence.features.shape[1]]
    split = torch.split(evidence.features, widths, dim=1)
    units = [F.normalize(standardize(part), dim=1) for part in split]
    # the encoders whose neighbours agree
    words = MULTI_CLASS.labels(evidence.log_probabilities)
    chance = (words.bincount() / len(words)).square().sum()
    graphs = [graph(unit) for unit in units]
    shared = [
        ((words[near] == words[:, None]).float().mean() - chance).item() for _, near in graphs
    ]
    kept = [i for i, share in enumerate(shared) if share >= AGREEMENT * max(shared)] or [0]
    if len(units) == 1:
        return Spaces(units[0], affinity(*graphs[0]), evidence.probed, shared[0])

    # those whose Gaussians say the same as the first one's
    text, none = MULTI_CLASS.probabilities(evidence.log_probabilities), evidence.labels * 0 - 1
    weights, rounds = candidates(0)[0], config.rounds
    classes = [
        MULTI_CLASS.labels(refine(units[i], text, affinity(*graphs[i]), none, weights, rounds))
        for i in kept
    ]
    same = [
        i for i, z in zip(kept, classes, strict=True) if (z == classes[0]).float().mean() >= SAME
    ]

    def join(parts: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
        return F.normalize(torch.cat([F.normalize(parts[i], dim=1) for i in numbers], 1), dim=1)

    probed = join(torch.split(evidence.probed, widths, dim=1), kept)
    return Spaces(join(units, same), affinity(*graph(join(units, kept))), probed, max(shared))


def _unfitted(evidence: Evidence) -> tuple[float, ...]:
    """Return weights of text and probe, 0 for a text that knows nothing of the labels, else 1."""
    images, seen = torch.nonzero(evidence.truth >= 0).flatten(), classes_of(evidence.labels)
    if not len(seen):
        return (1.0,)
    images = images[torch.isin(evidence.truth[images], seen)]
    text = MULTI_CLASS.log_probabilities(evidence.log_probabilities[images][:, seen])
    loss = F.nll_loss(text, torch.searchsorted(seen, evidence.truth[images])).item()
    return (float(loss < math.log(len(seen))), 1.0)


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
    evidence: Evidence, probed: Tensor, splits: list[_Split], shots: float
) -> tuple[float | None, tuple[float, ...], Sequence[Probe | None]]:
    """Return strength and weights of the experts, and the probe of each split."""
    seen = classes_of(evidence.labels)
    if not len(seen):
        return None, (1.0,), [None for _ in splits]
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
            probes.append(fit_probe(probed[labeled], split.labels[labeled], strength))
        weights: tuple[float, ...] = (1.0, 1.0)
        loss = 0.0
        if len(rows):
            text = MULTI_CLASS.log_probabilities(evidence.log_probabilities[rows][:, seen])
            predicted = [
                probe.log_probabilities(probed[images])
                for probe, images in zip(probes, judges, strict=True)
            ]
            experts = torch.stack([text, torch.cat(predicted)])
            labels = torch.searchsorted(seen, truth[rows])
            weights, loss = fit_weights(experts, labels, 1 / sizes[pair])
        options.append((loss, strength, weights, probes))
    _, strength, weights, probes = min(options, key=lambda option: option[0])
    return strength, weights, probes


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
