"""Refinement of a pool: time and memory at full size, against dense matrices."""

import time
from collections.abc import Iterator
from multiprocessing import get_context

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measuring import alternate, median, peak_memory
from benchmarks.settings import Settings
from kdpl.targets.refinement.experts import Evidence, assign
from kdpl.targets.refinement.refine import (
    RefinementConfig,
    Weights,
    affinity,
    nearest,
    refine,
)

_WEIGHTS = Weights(0.3, 3.0, 0.3)
_NEIGHBORS = RefinementConfig.neighbors
_ROUNDS = 3
_SHARPNESS = 60.0

Measured = tuple[str, float, str, float | None, float | None]
"""Title, value, unit, and the value that it should have at least, or at most."""


def pool(images: int, classes: int, width: int) -> tuple[Tensor, Tensor]:
    """Draw normalised features [N, D] around the classes' centres, and a teacher's predictions of them [N, C]."""
    draw = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(classes, width, generator=draw), dim=1)
    features = torch.randn(images, width, generator=draw).mul_(2 / width**0.5)
    features = F.normalize(features.add_(centres[torch.arange(images) % classes]), dim=1)
    vectors = F.normalize(centres + torch.randn(classes, width, generator=draw) / width**0.5, dim=1)
    return features, (_SHARPNESS * features @ vectors.T).softmax(dim=1)


def dense(
    features: Tensor, predictions: Tensor, weights: Weights, neighbors_of: int, rounds: int
) -> Tensor:
    """The same rounds with a matrix [N, N] of all pairs, and each class's Gaussian as it is written."""
    similarity = (features @ features.T).fill_diagonal_(-1)
    values, indices = similarity.topk(neighbors_of, dim=1)
    neighbors = torch.zeros_like(similarity).scatter_(1, indices, values.clamp_min(0))
    neighbors = (neighbors + neighbors.T) / 2
    z, prior = predictions.clone(), weights.prior * predictions.clamp_min(1e-9).log()
    for _ in range(rounds):
        mass = z.sum(dim=0)[:, None]
        means = z.T @ features / mass
        variance = (z.T @ features.square() - mass * means.square()).sum(dim=0) / len(z)
        gaussians = torch.stack(
            [(-0.5 * (features - mean).square() / variance).sum(dim=1) for mean in means], dim=1
        )
        for _ in range(5):
            z = (weights.likelihood * gaussians + weights.graph * neighbors @ z + prior).softmax(
                dim=1
            )
    return z


def refinements(settings: Settings) -> list[Measured]:
    """Measure in a process of its own, whose memory is that of the refinement."""
    with get_context("spawn").Pool(1) as process:
        return process.apply(_measured, (settings,))


def _measured(settings: Settings) -> list[Measured]:
    settings.prepare()
    return [*_large(settings), *_small(settings), *_experts(settings)]


def _large(settings: Settings) -> Iterator[Measured]:
    images, classes, width = (600, 12, 32) if settings.small else (100_000, 1000, 768)
    device = settings.torch_device
    features, predictions = (each.to(device) for each in pool(images, classes, width))
    unlabeled = torch.full((images,), -1, device=device)
    seconds: dict[str, float] = {}

    def run() -> None:
        start = time.perf_counter()
        neighbors = affinity(
            *nearest(features, _NEIGHBORS, torch.arange(len(features), device=features.device))
        )
        found = time.perf_counter()
        refine(features, predictions, neighbors, unlabeled, _WEIGHTS, _ROUNDS)
        seconds["search"] = found - start
        seconds["round"] = (time.perf_counter() - found) / _ROUNDS

    peak = peak_memory(lambda: run, device)["peak"]
    name = f"refining {images:,} images of {classes:,} classes"
    yield f"{name}: search of neighbours", seconds["search"], "s", None, None
    yield f"{name}: a round", seconds["round"], "s", None, None
    yield f"{name}: peak memory", peak / 1e9, "GB", None, 4.0


def _small(settings: Settings) -> Iterator[Measured]:
    images, classes, width = (300, 5, 32) if settings.small else (5_000, 100, 768)
    features, predictions = (
        each.to(settings.torch_device) for each in pool(images, classes, width)
    )
    unlabeled = torch.full((images,), -1, device=settings.torch_device)
    made: dict[str, Tensor] = {}

    def sparse() -> None:
        neighbors = affinity(
            *nearest(features, _NEIGHBORS, torch.arange(len(features), device=features.device))
        )
        made["kdpl"] = refine(features, predictions, neighbors, unlabeled, _WEIGHTS, _ROUNDS)

    def plain() -> None:
        made["dense"] = dense(features, predictions, _WEIGHTS, _NEIGHBORS, _ROUNDS)

    seconds = alternate({"dense": plain, "kdpl": sparse}, settings.repeats, settings.torch_device)
    name = f"refining {images:,} images of {classes:,} classes"
    yield (
        f"{name}: dense matrices / kdpl",
        median(seconds["dense"]) / median(seconds["kdpl"]),
        "x",
        1.0,
        None,
    )
    yield (
        f"{name}: assignments differ by",
        (made["dense"] - made["kdpl"]).abs().max().item(),
        "",
        None,
        1e-3,
    )


def _experts(settings: Settings) -> Iterator[Measured]:
    images, classes, width = (300, 5, 32) if settings.small else (10_000, 100, 1280)
    device = settings.torch_device
    features, predictions = (each.to(device) for each in pool(images, classes, width))
    # the classes of the pool come in turns, so that the first images are 16 of each
    numbers = torch.arange(images, device=device)
    labels = torch.where(numbers < 16 * classes, numbers % classes, -1)
    none = torch.full_like(labels, -1)
    evidence = Evidence(features, features, predictions.log(), labels, none, numbers, trusted=True)
    seconds: list[float] = []

    def run() -> None:
        start = time.perf_counter()
        assign(evidence, RefinementConfig())
        seconds.append(time.perf_counter() - start)

    peak = peak_memory(lambda: run, device)["peak"]
    name = f"experts and refinement of {images:,} images of {classes:,} classes, 16 labels each"
    yield f"{name}: all folds", seconds[-1], "s", None, 300.0
    yield f"{name}: peak memory", peak / 1e9, "GB", None, 3.0
