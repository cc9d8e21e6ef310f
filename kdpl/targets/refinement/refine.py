"""Refinement of a teacher's predictions by the distribution of the images: the mathematics.

Transductive, following TransCLIP (arXiv 2406.01837): nearby images belong to one class, and the
images of a class lie around its mean. Works on tensors alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from kdpl.tasks import MULTI_CLASS

_CELLS = 2**25  # largest matrix at a time, 128 MiB in float32
_LEAST_PRIOR = 1e-9
_LEAST_VARIANCE = 1e-6
_LEAST_MASS = 1e-6
_INNER = 5


class Weights(NamedTuple):
    """Weights of the terms of the refinement.

    Attributes:
        likelihood: ω, weight of the classes' Gaussians. Below 1, as the D dimensions of a feature
            depend on each other.
        graph: γ, weight of the neighbours' assignments.
        prior: λ, weight of the predictions that are refined.
    """

    likelihood: float
    graph: float
    prior: float


REFINEMENTS = (Weights(0.3, 3.0, 0.3), Weights(0.03, 3.0, 1.0), Weights(0.1, 3.0, 0.3), None)
"""Refinements that are mixed; None: none. The first alone where labels are too few to choose."""

SAME = 0.75
"""Least share of images on which two encoders' refinements agree if the Gaussians of both count."""


@dataclass
class RefinementConfig:
    """Settings of the refinement of predictions on the unlabelled images.

    Attributes:
        views: Number of views of an image: the evaluation view, and random views. Teacher and probe
            predict from their mean feature; the refined feature is the mean plus twice the
            evaluation view.
        neighbors: k, nearest neighbours of an image by cosine.
        rounds: Number of rounds, each with five updates of the assignments and one of the
            Gaussians.
    """

    views: PositiveInt = 8
    neighbors: PositiveInt = 5
    rounds: PositiveInt = 15


def standardize(features: Tensor) -> Tensor:
    """Standardise features [N, D] to mean 0 and variances that sum to 1 over all dimensions."""
    centered = features.float() - features.float().mean(dim=0)
    scale = (centered.std(dim=0) + 1e-6) * features.shape[1] ** 0.5
    return torch.div(centered, scale)


def nearest(features: Tensor, k: int, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Find cosines and indices, both [N, k], of the k nearest other images.

    Compares normalised features [N, D], in O(N·k) memory. Images of the same group in ``groups``
    [N] are not neighbours, as near-copies would only confirm themselves.
    """
    n, parts = len(features), []
    for rows in torch.split(torch.arange(n, device=features.device), max(1, _CELLS // n)):
        similarity = features[rows] @ features.T
        similarity.masked_fill_(groups[rows, None] == groups, -2)
        parts.append(similarity.topk(min(k, n - 1), dim=1))
    cosines, indices = (torch.cat(blocks) for blocks in zip(*parts, strict=True))
    return cosines, indices


def affinity(cosines: Tensor, indices: Tensor) -> Tensor:
    """Build the symmetric sparse matrix [N, N] of neighbours [N, k].

    It holds half of each cosine in both directions; negative cosines count as 0.
    """
    n, k = indices.shape
    rows = torch.arange(n, device=indices.device).repeat_interleave(k)
    halves = cosines.clamp_min(0).flatten().float() / 2
    both = torch.stack([torch.cat([rows, indices.flatten()]), torch.cat([indices.flatten(), rows])])
    return torch.sparse_coo_tensor(
        both, torch.cat([halves, halves]), (n, n), check_invariants=False
    ).coalesce()


def refine(
    features: Tensor,
    predictions: Tensor,
    neighbors: Tensor,
    labels: Tensor,
    weights: Weights,
    rounds: int,
) -> Tensor:
    """Assign images to classes by predictions, neighbours and a Gaussian per class.

    From z = y, each round fits means and one diagonal covariance to the assignments z, then five
    times z_i ← softmax_c(ω log N(f_i; μ_c, Σ) + γ Σ_j a_ij z_jc + λ log y_ic). All images
    are updated at once, so their order does not matter.

    Args:
        features: Normalised features f of all images, float [N, D].
        predictions: The probabilities y to refine, float [N, C].
        neighbors: The result a of ``affinity``, sparse [N, N].
        labels: Classes of labelled images, whose z stays the label, −1 for the others, [N].
        weights: The weights ω, γ and λ.
        rounds: Number of rounds.

    Returns:
        The assignments z, float32 [N, C].
    """
    likelihood, graph, prior = weights

    # start at the predictions, and at the labels
    labeled = torch.nonzero(labels >= 0).flatten()
    fixed = F.one_hot(labels[labeled], predictions.shape[1]).float()
    z = predictions.float().clone()
    z[labeled] = fixed

    # in parts of the images, to limit memory
    step = max(1, _CELLS // max(*z.shape[1:], features.shape[1]))
    parts = [slice(start, start + step) for start in range(0, len(z), step)]
    squares = features.new_zeros(features.shape[1], dtype=torch.float32)
    for part in parts:
        squares += features[part].float().square().sum(dim=0)
    for _ in range(rounds):
        # the Gaussians, and what stays the same over the updates of z
        means, variances = _fit(features, squares, z, parts)
        fields = torch.empty_like(z)
        precision = likelihood / variances
        bias = 0.5 * (means * means * precision).sum(dim=1)
        for part in parts:
            # the terms of log N that are the same for all classes cancel in the softmax
            gaussians = features[part].float() @ (means * precision).T - bias
            fields[part] = (
                gaussians + prior * predictions[part].float().clamp_min(_LEAST_PRIOR).log()
            )
        # the updates of z
        for _ in range(_INNER):
            z = torch.sparse.mm(neighbors, z).mul_(graph).add_(fields)
            for part in parts:
                z[part] = z[part].softmax(dim=1)
            z[labeled] = fixed
    return z


def _fit(features: Tensor, squares: Tensor, z: Tensor, parts: list[slice]) -> tuple[Tensor, Tensor]:
    """Fit class means [C, D] and one diagonal variance [D] to images [N, D], by z [N, C].

    ``squares`` are the sums of the squared features, [D].
    """
    mass = z.sum(dim=0).clamp_min(_LEAST_MASS)
    sums = features.new_zeros(z.shape[1], features.shape[1], dtype=torch.float32)
    for part in parts:
        sums += z[part].T @ features[part].float()
    means = sums / mass[:, None]
    variances = (squares - (mass[:, None] * means * means).sum(dim=0)) / len(z)
    return means, variances.clamp_min(_LEAST_VARIANCE)


class Space(NamedTuple):
    """Features of the encoders, side by side.

    Attributes:
        gaussian: Normalised features of the classes' Gaussians, float [N, D].
        probed: Normalised features that the probe reads, float [N, D].
        neighbors: The result of ``affinity``, sparse [N, N].
    """

    gaussian: Tensor
    probed: Tensor
    neighbors: Tensor

    def refine(
        self, predictions: Tensor, labels: Tensor, weights: Weights | None, rounds: int
    ) -> Tensor:
        """Refine predictions [N, C] as ``refine`` does, or only set the labels [N] by None."""
        if weights is not None:
            return refine(self.gaussian, predictions, self.neighbors, labels, weights, rounds)
        fixed = F.one_hot(labels.clamp_min(0), predictions.shape[1]).to(predictions)
        return torch.where((labels >= 0)[:, None], fixed, predictions)


def find_space(
    features: Tensor,
    probed: Tensor,
    widths: list[int],
    predictions: Tensor,
    groups: Tensor,
    config: RefinementConfig,
) -> Space:
    """Join encoders, each of equal weight.

    The Gaussians of an encoder count if refinement by it alone, without a label, agrees with that
    by the first one on the share ``SAME`` of the images.

    Args:
        features: Features of the encoders side by side, float [N, D].
        probed: Their normalised features that the probe reads, float [N, D].
        widths: Number of dimensions of each encoder.
        predictions: The teacher's probabilities, float [N, C].
        groups: Groups of the images, [N], as in ``nearest``.
        config: Settings of the refinement.
    """

    def neighbors(unit: Tensor) -> Tensor:
        return affinity(*nearest(unit, config.neighbors, groups))

    def join(units: Iterable[Tensor]) -> Tensor:
        return F.normalize(torch.cat([F.normalize(unit, dim=1) for unit in units], 1), dim=1)

    units = [F.normalize(standardize(part), dim=1) for part in torch.split(features, widths, dim=1)]
    probed = join(torch.split(probed, widths, dim=1))
    if len(units) == 1:
        return Space(units[0], probed, neighbors(units[0]))
    unlabeled = torch.full_like(groups, -1)
    alone = [
        refine(unit, predictions, neighbors(unit), unlabeled, REFINEMENTS[0], config.rounds)
        for unit in units
    ]
    classes = [MULTI_CLASS.labels(z) for z in alone]
    same = [
        unit
        for unit, predicted in zip(units, classes, strict=True)
        if (predicted == classes[0]).float().mean() >= SAME
    ]
    return Space(join(same), probed, neighbors(join(units)))
