"""``python -m benchmarks.explain RUN…``: heat maps compared by deletion and insertion.

Each RUN is a finished student's folder, whose test images are explained for the class predicted.
Pixels are replaced by blurred ones in the order of a map, the most important first (deletion), or
restored in this order in the blurred image (insertion); the mean probability of the class over the
shares of pixels is the area under the curve. Low is good for deletion, and high for insertion
(Petsiuk et al., RISE, arXiv 1806.07421). With --mean the removed value is the image's mean colour,
another one than kdpl.report.reasons mixes with. The rows are means over runs, with the standard deviation
of the runs where there are several.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from kdpl import Classifier
from kdpl.clip import PromptableImageTower
from kdpl.clip.towers.block import in_projection, split_heads
from kdpl.report.reasons.heat import GRID, MASKS, cell_importance, log_odds
from kdpl.report.run_folder import Run
from kdpl.runtime.predictions import spread

STEPS = 16
Way = Callable[[Classifier, Tensor, int], Tensor]
"""A map [S, S] of a prepared image, uint8 [3, S, S], and a label."""


def random(_: Classifier, image: Tensor, label: int) -> Tensor:
    """Draw a smooth random map."""
    coarse = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(label))
    return enlarged(coarse[0, 0], image)


def gradient(classifier: Classifier, image: Tensor, label: int) -> Tensor:
    """Return the absolute gradient of the log odds by pixel (Simonyan et al., arXiv 1312.6034)."""
    pixels = (image[None].float() / 255).requires_grad_()
    (found,) = torch.autograd.grad(log_odds(classifier, pixels, label).sum(), pixels)
    return found[0].abs().sum(dim=0)


def enlarged(coarse: Tensor, image: Tensor) -> Tensor:
    """Scale a map to an image's size."""
    return F.interpolate(coarse[None, None], image.shape[-2:], mode="bilinear")[0, 0]


def watched(
    classifier: Classifier, image: Tensor, label: int, modules: Sequence[nn.Module]
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Return the log odds, and the first input and the output of each module."""
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
        for module in modules
    ]
    pixels = (image[None].float() / 255).requires_grad_()
    try:
        odds = log_odds(classifier, pixels, label).sum()
    finally:
        for hook in hooks:
            hook.remove()
    return odds, seen


def patches(tokens: Tensor, image: Tensor, tower: PromptableImageTower) -> Tensor:
    """Lay values [L] of class token, patches and prompts on the image."""
    edge = image.shape[-1] // tower.visual.patch_size[0]
    return enlarged(tokens[1 : 1 + edge**2].reshape(edge, edge), image)


def tokens(classifier: Classifier, image: Tensor, label: int) -> Tensor:
    """Return the gradient times the patch tokens that enter the last block, where positive."""
    tower = classifier.encoder.tower.module
    odds, [(entering, _)] = watched(classifier, image, label, [tower.blocks[-1].ln_1])
    (found,) = torch.autograd.grad(odds, entering)
    return patches((found * entering).sum(dim=-1)[0].relu().detach(), image, tower)


def rollout(classifier: Classifier, image: Tensor, label: int) -> Tensor:
    """Return the class token's attention through all blocks (Abnar & Zuidema, arXiv 2005.00928)."""
    tower = classifier.encoder.tower.module
    _, seen = watched(classifier, image, label, [block.ln_1 for block in tower.blocks])
    whole = torch.eye(seen[0][1].shape[1])
    for block, (entering, _) in zip(tower.blocks, seen, strict=True):
        q, k, _ = split_heads(block, in_projection(block, entering))
        attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
        whole = (attention.mean(dim=1)[0] + torch.eye(len(whole))) / 2 @ whole
    return patches(whole[0].detach(), image, tower)


def cam(stage: int, layer: bool) -> Way:
    """Return Grad-CAM (arXiv 1610.02391) or LayerCAM (TIP 30, 2021) of a stage of a timm network."""

    def way(classifier: Classifier, image: Tensor, label: int) -> Tensor:
        network = classifier.encoder.tower.module.visual
        module = network.get_submodule(network.feature_info[stage]["module"])
        odds, [(_, features)] = watched(classifier, image, label, [module])
        (found,) = torch.autograd.grad(odds, features)
        weights = found.relu() if layer else found.mean(dim=(2, 3), keepdim=True)
        return enlarged((weights * features).sum(dim=1)[0].relu().detach(), image)

    return way


def masks(number: int = MASKS, grid: int = GRID) -> Way:
    """Return kdpl.report.reasons's way, or with other numbers of masks and cells."""

    def way(classifier: Classifier, image: Tensor, label: int) -> Tensor:
        with patch.multiple("kdpl.report.reasons.heat", MASKS=number, GRID=grid):
            coarse = cell_importance(classifier, image, label)
        return enlarged(coarse.relu(), image)

    return way


SHIPPED = "kdpl.report.reasons"
WAYS: Mapping[str, Way] = {
    "random": random,
    "gradient of pixels": gradient,
    SHIPPED: masks(),
    "kdpl.report.reasons, 4 masks": masks(number=4),
    "kdpl.report.reasons, 8 masks": masks(number=8),
    "kdpl.report.reasons, 8 × 8 cells": masks(grid=8),
}
OF_VIT: Mapping[str, Way] = {"gradient × last tokens": tokens, "attention rollout": rollout}
OF_TIMM: Mapping[str, Way] = {
    "Grad-CAM, last stage": cam(-1, layer=False),
    "LayerCAM, last stage but one": cam(-2, layer=True),
    "LayerCAM, last stage but two": cam(-3, layer=True),
}


@torch.no_grad()
def areas(
    classifier: Classifier, image: Tensor, label: int, importance: Tensor, use_mean: bool
) -> tuple[float, float]:
    """Return the areas under the curves of deletion and insertion."""
    pixels = image[None].float() / 255
    edge = image.shape[-1]
    removed = pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels)
    if not use_mean:
        kernel = 2 * round(3 / 8 * edge) + 1
        removed = gaussian_blur(pixels, [kernel, kernel], [edge / 8, edge / 8])
    places = importance.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(places).scatter_(0, places, torch.arange(len(places)))
    counts = torch.arange(STEPS + 1)[:, None] * len(places) / STEPS
    first = (rank < counts).view(-1, 1, edge, edge)

    def area(images: Tensor) -> float:
        curve = classifier.task.probabilities(classifier(images))[:, label]
        return float(torch.trapezoid(curve) / STEPS)

    return area(torch.where(first, removed, pixels)), area(torch.where(first, pixels, removed))


def measure(run: Path, images: int, use_mean: bool) -> dict[str, tuple[float, float, float]]:
    """Return the mean areas of each way, and milliseconds for an image."""
    opened = Run.find(run)
    classifier, data = opened.classifier, opened.data
    seen = [
        classifier.prepare(data.splits.open_image(record.source))
        for record in spread(data.splits.test, images)
    ]
    with torch.no_grad():
        labels = [int(classifier.task.labels(classifier(image[None]))) for image in seen]
    tokened = isinstance(classifier.encoder.tower.module, PromptableImageTower)
    found = {}
    for name, way in (WAYS | (OF_VIT if tokened else OF_TIMM)).items():
        start = time.process_time()
        maps = [way(classifier, *each) for each in zip(seen, labels, strict=True)]
        milliseconds = 1000 * (time.process_time() - start) / len(seen)
        both = [areas(classifier, *each, use_mean) for each in zip(seen, labels, maps, strict=True)]
        deletion, insertion = (statistics.mean(each) for each in zip(*both, strict=True))
        found[name] = deletion, insertion, milliseconds
        print(f"{run}  {name}: {deletion:.3f} {insertion:.3f} {milliseconds:.0f} ms", flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all ways on the runs, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--mean", action="store_true", help="remove by the mean colour")
    args = parser.parse_args(argv)
    all_found = [measure(run, args.images, args.mean) for run in args.runs]
    print("\n| map | deletion | insertion | ms |\n|---|--:|--:|--:|")
    for name in all_found[0]:
        columns = list(zip(*(found[name] for found in all_found), strict=True))
        cells = [_mean(column) for column in columns[:2]]
        print(f"| {name} | {' | '.join(cells)} | {statistics.mean(columns[2]):.0f} |")
    return 0


def _mean(values: Sequence[float]) -> str:
    spread_of_runs = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread_of_runs}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
