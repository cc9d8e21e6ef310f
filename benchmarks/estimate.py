"""How right an estimate is: ``python -m benchmarks.estimate --help``.

Reads the features of folders written by ``python -m kdpl estimate``, of domains in which all images have a label. A third of
the images are tested; of the others, by seed, some labels a class are seen. The estimate from these labels is compared with the
student of all refined targets, and with the probes, on the test images.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

import torch
from torch import Tensor

from kdpl.data.probe import choose_strength
from kdpl.optim import OptimConfig
from kdpl.report.estimate.expected import expect, unlike
from kdpl.report.estimate.folds import (
    LARGER_PROBE,
    PROBE,
    STUDENT,
    Frozen,
    Split,
    measure,
    models_of,
)
from kdpl.report.estimate.inputs import FEATURES
from kdpl.report.estimate.training import ProjectorTraining
from kdpl.runtime.artifacts import read_tensors
from kdpl.targets.refinement.experts import Evidence
from kdpl.targets.refinement.refine import RefinementConfig

_CLEAR = 0.05  # differences from a probe that an estimate should find


def read(folder: Path) -> Frozen:
    """Read the features in an estimate's folder, of a student whose projector alone learns."""
    file = folder / FEATURES
    tensors, numbers = read_tensors(file, "features of an estimate", 4, "run estimate again")
    class_vectors = tensors.pop("class_vectors")
    networks = {name: tensors.pop(name) for name in ("still", "student", "teacher", "views")}
    evidence = Evidence(**tensors, trusted=numbers["trusted"], widths=tuple(numbers["widths"]))
    settings = numbers["training"]
    settings |= {"optim": OptimConfig(**settings["optim"]), "whole": True}
    training = ProjectorTraining(class_vectors, **settings)
    refinement = RefinementConfig()
    return Frozen(
        evidence, **networks, pool=numbers["pool"], training=training, refinement=refinement
    )


def take(frozen: Frozen, images: Tensor, labels: Tensor, pool: int) -> Frozen:
    """Return some of the images, the first ones as the pool, with other labels [n]."""
    old = frozen.evidence
    evidence = replace(
        old,
        **{
            name: getattr(old, name)[images]
            for name in ("features", "probed", "log_probabilities", "groups")
        },
        labels=labels,
        validation=torch.full_like(labels, -1),
    )
    networks = {
        name: getattr(frozen, name)[images] for name in ("still", "student", "teacher", "views")
    }
    return replace(frozen, evidence=evidence, **networks, pool=pool)


def draw(whole: Frozen, labels_a_class: int, seed: int) -> tuple[Frozen, Frozen, Tensor]:
    """Return a pool with so many labels a class; the same with test images at its end; their classes."""
    truth, generator = whole.evidence.truth, torch.Generator().manual_seed(seed)
    test, pool = torch.randperm(len(truth), generator=generator).tensor_split([len(truth) // 3])
    labels = torch.full_like(truth, -1)
    for label in truth.unique():
        images = pool[truth[pool] == label][:labels_a_class]
        labels[images] = label
    every = torch.cat([pool, test])
    seen = take(whole, pool, labels[pool], len(pool))
    return seen, take(whole, every, labels[every], len(pool)), truth[test]


def tested(frozen: Frozen, truth: Tensor) -> dict[str, float]:
    """Test student and probes with all labels on the images after the pool."""
    labeled = torch.nonzero(frozen.evidence.labels >= 0).flatten()
    labels, groups = frozen.evidence.labels[labeled], frozen.evidence.groups[labeled]
    strengths = [
        choose_strength(features[labeled], labels, groups)[0]
        for features in (frozen.student, frozen.teacher)
    ]
    judges = torch.arange(frozen.pool, len(frozen.evidence.truth))
    predicted = models_of(Split(labeled, judges), frozen, (strengths[0], strengths[1]))
    return {name: (rows == truth).float().mean().item() for name, rows in predicted.items()}


def report(domains: dict[str, Frozen], labels: Sequence[int], seeds: Sequence[int]) -> None:
    """Print how often estimates are right."""
    rows = defaultdict[str | int, list[dict[str, float]]](list)
    for domain, whole in domains.items():
        for number in labels:
            for seed in seeds:
                seen, with_test, truth = draw(whole, number, seed)
                right, expected = tested(with_test, truth), expect(seen.evidence, measure(seen))
                student = expected.rows[STUDENT]
                low, high = student.interval
                cell = {
                    "covered": low <= right[STUDENT] <= high,
                    "width": 100 * (high - low),
                    "error": 100 * (student.value - right[STUDENT]),
                    "unlike": 100 * unlike(seen),
                }
                for probe in (PROBE, LARGER_PROBE):
                    gain, (low, high) = right[STUDENT] - right[probe], expected.over[probe].interval
                    clear = not low <= 0 <= high
                    if clear:
                        cell[f"sign, {probe}"] = gain * low > 0
                    if abs(gain) > _CLEAR:
                        cell[f"clear, {probe}"] = clear
                print(f"{domain} {number} {seed}: {cell}", flush=True)
                for key in (domain, number, "all"):
                    rows[key].append(cell)
    counted = ["covered"] + [
        f"{what}, {probe}" for probe in (PROBE, LARGER_PROBE) for what in ("sign", "clear")
    ]
    print(f"| | cases | median width | error | unlike | {' | '.join(counted)} |")
    print(f"|---|{'--:|' * (4 + len(counted))}")
    for key in sorted(rows, key=lambda key: (key == "all", isinstance(key, int), key)):
        cells, unit = rows[key], " a class" if isinstance(key, int) else ""
        texts = [f"{key}{unit} | {len(cells)}", f"{median(cell['width'] for cell in cells):.1f}"]
        texts += [f"{fmean(cell[name] for cell in cells):+.1f}" for name in ("error", "unlike")]
        for name in counted:
            values = [cell[name] for cell in cells if name in cell]
            texts.append(f"{sum(values):.0f} of {len(values)}")
        print(f"| {' | '.join(texts)} |")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.estimate", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders of estimates")
    parser.add_argument("--labels", type=int, nargs="+", default=[2, 4, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args(argv)
    domains = {folder.name: read(folder) for folder in options.folders}
    report(domains, options.labels, options.seeds)


if __name__ == "__main__":
    main()
