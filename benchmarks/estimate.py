"""How right an estimate is: ``python -m benchmarks.estimate --help``.

Reads the features of folders written by ``python -m kdpl estimate``, of domains in which all images have a label. A third of
the images are tested; of the others, by seed, some labels a class are seen. The estimate from these labels is compared with the
linear student of all refined targets, and with the probe, on the test images. What an estimate takes from other domains is
measured on the other folders.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdpl.data.probe import choose_strength, fit_probe, linear_student
from kdpl.report.estimate.expected import Priors, expect
from kdpl.report.estimate.folds import PROBE, STUDENT, Frozen, Measured, measure
from kdpl.report.estimate.inputs import FEATURES
from kdpl.runtime.artifacts import read_tensors
from kdpl.targets.refinement.experts import Evidence, assign
from kdpl.targets.refinement.refine import RefinementConfig

_SPLIT_OFF = 8  # labels a class from which on init splits a fifth of them off to validate on
_CLEAR = 0.02  # smaller differences from the probe have no right answer
_CLOSE = 0.04


class Tested(NamedTuple):
    """Test accuracies of the linear student and of the probe of its network."""

    student: float
    probe: float


class Case(NamedTuple):
    """Inputs of an estimate, and what it is compared with."""

    domain: str
    labels: int
    evidence: Evidence
    measured: Measured
    tested: Tested
    twice: Tested | None


def read(folder: Path) -> Frozen:
    """Read the features in an estimate's folder."""
    file = folder / FEATURES
    tensors, numbers = read_tensors(file, "features of an estimate", 3, "run estimate again")
    networks = {name: tensors.pop(name) for name in ("still", "student", "teacher")}
    widths = tuple(numbers["widths"])
    evidence = Evidence(**tensors, trusted=numbers["trusted"], widths=widths)
    return Frozen(evidence, **networks, pool=numbers["pool"])


def draw(whole: Frozen, labels_a_class: int, seed: int) -> tuple[Frozen, Tensor]:
    """Return a pool with so many labels a class, and the indices of the test images."""
    truth, generator = whole.evidence.truth, torch.Generator().manual_seed(seed)
    test, pool = torch.randperm(len(truth), generator=generator).tensor_split([len(truth) // 3])
    labels, validation = torch.full_like(truth, -1), torch.full_like(truth, -1)
    for label in truth.unique():
        images = pool[truth[pool] == label][:labels_a_class]
        held_out = round(len(images) / 5) if labels_a_class >= _SPLIT_OFF else 0
        validation[images[:held_out]], labels[images[held_out:]] = label, label
    pool = pool[validation[pool].argsort(stable=True)]  # validation images last
    old = whole.evidence
    evidence = Evidence(
        old.features[pool],
        old.probed[pool],
        old.log_probabilities[pool],
        labels[pool],
        validation[pool],
        old.groups[pool],
        trusted=True,
        widths=old.widths,
    )
    number = int((validation[pool] < 0).sum())
    networks = (whole.still[pool], whole.student[pool], whole.teacher[pool])
    return Frozen(evidence, *networks, number), test


def tested(whole: Frozen, frozen: Frozen, test: Tensor) -> Tested:
    """Test the linear student and the probe with all labels."""
    evidence, pool = frozen.evidence, slice(frozen.pool)
    settings = assign(evidence, RefinementConfig())
    refused = settings.right is not None and settings.right[1] < settings.right[0]
    targets = evidence.log_probabilities.exp() if refused else settings.assignments
    weight, bias = linear_student(frozen.student[pool], targets[pool])
    labeled = evidence.labels >= 0
    features, labels = frozen.student[labeled], evidence.labels[labeled]
    strength, _ = choose_strength(features, labels, evidence.groups[labeled])
    probe, truth = fit_probe(features, labels, strength), whole.evidence.truth[test]
    answers = (
        (whole.student[test] @ weight + bias).argmax(dim=1),
        probe.classes[probe.log_probabilities(whole.student[test]).argmax(dim=1)],
    )
    return Tested(*((answer == truth).float().mean().item() for answer in answers))


def cases_of(folder: Path, labels: Sequence[int], seeds: Sequence[int]) -> list[Case]:
    """Return the cases of a domain."""
    whole, cases = read(folder), []
    for number in labels:
        for seed in seeds:
            frozen, test = draw(whole, number, seed)
            twice, _ = draw(whole, 2 * number, seed)
            results = tested(whole, frozen, test), tested(whole, twice, test)
            cases.append(Case(folder.name, number, frozen.evidence, measure(frozen), *results))
    return cases


def priors_of(cases: Sequence[Case], training: tuple[float, float]) -> Priors:
    """Measure what an estimate takes from other domains, whose teachers are better than chance.

    Centres are medians of domains, but for the offset of the confidence.
    """

    def moments(values: Sequence[tuple[str, float]]) -> tuple[float, float]:
        of_domain = defaultdict(list)
        for domain, value in values:
            of_domain[domain].append(value)
        middle = median(map(fmean, of_domain.values()))
        square = fmean((value - middle) ** 2 for _, value in values)
        return middle, (square * of_few) ** 0.5

    domains = len({c.domain for c in cases})
    of_few = domains / max(domains - 1, 1)  # the centres are of few domains

    # least squares of what the confidence says too little
    seen = np.array([c.evidence.labels_a_class(c.evidence.labels) for c in cases], float)
    terms = np.stack([np.ones(len(cases)), 1 / seen], axis=1)
    missing = np.array([c.tested.student - c.measured.confidence for c in cases])
    offset, by_labels = np.linalg.lstsq(terms, missing, rcond=None)[0]
    remaining = float(np.square(missing - offset - by_labels / seen).mean()) * of_few
    variance = fmean(c.tested.student * (1 - c.tested.student) for c in cases)
    more, probe_more = (
        moments([(c.domain, c.twice[k] - c.tested[k]) for c in cases if c.twice]) for k in (0, 1)
    )
    gains = np.array([c.tested.student - c.tested.probe for c in cases])
    labels = np.array([c.labels for c in cases], float)
    error, gain, fall = min(
        (float(np.square(gains - gain * labels**-fall).mean()), float(gain), float(fall))
        for gain in np.arange(0.02, 0.3, 0.01)
        for fall in np.arange(0.2, 1.6, 0.05)
    )
    over_probe = (gain, fall, error**0.5)
    offsets = float(offset), float(by_labels)
    return Priors(offsets, variance / remaining, more, probe_more, over_probe, training)


def report(cases: Sequence[Case], training: tuple[float, float]) -> None:
    """Print how often estimates are right, where what they take is from the other domains."""
    rows = defaultdict[str | int, list[dict[str, float]]](list)
    for case in cases:
        priors = priors_of([other for other in cases if other.domain != case.domain], training)
        expected = expect(case.evidence, case.measured, priors)
        student = expected.rows[STUDENT]
        low, high = student.interval
        right: dict[str, float] = {
            "covered": low <= case.tested.student <= high,
            "width": 100 * (high - low),
            "error": 100 * abs(student.value - case.tested.student),
        }
        if case.twice:
            gain = case.twice.student - case.tested.student
            right["twice"] = abs(gain - expected.more.value) <= _CLOSE
        gain = case.tested.student - case.tested.probe
        if expected.over_probe and abs(gain) > _CLEAR:
            right["worth"] = gain * expected.over_probe.value > 0
        if PROBE in expected.rows:
            low, high = expected.rows[PROBE].interval
            right["probe"] = low <= case.tested.probe <= high
        for key in (case.domain, case.labels, "all"):
            rows[key].append(right)
    print("| | cases | covered | median width | error | twice | worth | probe covered |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    # domains, numbers of labels, all
    for key in sorted(rows, key=lambda key: (key == "all", isinstance(key, int), key)):
        cells, unit = rows[key], " a class" if isinstance(key, int) else ""
        texts = [f"{key}{unit} | {len(cells)}"]
        for name in ("covered", "width", "error", "twice", "worth", "probe"):
            values = [float(cell[name]) for cell in cells if name in cell]
            if name in ("width", "error"):
                texts.append(f"{(median if name == 'width' else fmean)(values):.1f}")
            else:
                texts.append(f"{sum(values):.0f} of {len(values)}")
        print(f"| {' | '.join(texts)} |")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, and what all domains together say."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.estimate", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders of estimates, two or more")
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 2, 4, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--training",
        type=float,
        nargs=2,
        default=(0.0, 0.0),
        help="mean and deviation of trained minus linear students, 0 for what is tested here",
    )
    options = parser.parse_args(argv)
    cases = [
        case
        for folder in options.folders
        for case in cases_of(folder, options.labels, options.seeds)
    ]
    report(cases, tuple(options.training))
    print(priors_of(cases, tuple(options.training)))


if __name__ == "__main__":
    main()
