"""Expected accuracies with intervals, the learning curve, and what limits the student."""

from collections.abc import Sequence
from math import hypot, log2
from typing import Any, NamedTuple

import torch
from scipy.stats import beta, norm
from torch.nn import functional as F

from kdpl.report.charts import line_chart
from kdpl.report.estimate.folds import (
    LARGER_PROBE,
    MODELS,
    PROBE,
    STUDENT,
    TARGETS,
    ZERO_SHOT,
    Frozen,
    Measured,
)
from kdpl.report.intervals import Accuracy, Interval
from kdpl.targets.refinement.experts import Evidence
from kdpl.targets.refinement.target import unlike_share
from kdpl.tasks import MULTI_CLASS

LEVEL = 0.9
_CLEAR = 0.02  # smaller gains are not worth a sentence
_SHOWN = 5  # classes
_Z = float(norm.ppf((1 + LEVEL) / 2))


class Priors(NamedTuple):
    """What was measured on other domains, as by ``benchmarks.estimate`` (docs/estimate.md).

    Attributes:
        offset: Accuracy of the linear student minus ``Measured.confidence``: a constant, and what
            is added to it, divided by the labels a class, if the teacher knows the names.
        worth: Labelled images that this confidence is worth.
        doubling: Gain of students by twice the labels, and its standard deviation.
        probe_doubling: The same of probes.
        gain: Gain of a student over the probe of its network with one label a class, the exponent
            of labels a class by which it falls, and its standard deviation.
        training: Test accuracy of a trained student minus the linear one's, and its deviation, also
            taken for how test images differ from labelled ones.
    """

    offset: tuple[float, float]
    worth: float
    doubling: tuple[float, float]
    probe_doubling: tuple[float, float]
    gain: tuple[float, float, float]
    training: tuple[float, float]


MEASURED = Priors(
    (-0.04, 0.109), 52, (0.014, 0.025), (0.064, 0.051), (0.22, 0.8, 0.04), (0.025, 0.031)
)


class Expected(NamedTuple):
    """What is expected with all labels.

    Attributes:
        rows: Accuracy of each model.
        curves: Accuracies with half, all and twice the labels, of student and its probe.
        more: The student's gain by twice the labels.
        over_probe: Its gain over the probe of its network; None if nothing measures that.
        groups: Number of groups that judge.
        by_chance: Whether the zero-shot teacher may be right by chance alone, unlike in the domains
            that were measured.
    """

    rows: dict[str, Accuracy]
    curves: dict[str, list[tuple[float, float]]]
    more: Accuracy
    over_probe: Accuracy | None
    groups: int
    by_chance: bool


def interval(share: float, count: float, spread: float = 0.0) -> Interval:
    """Return the interval of a share of ``count`` images, quantiles of a beta distribution.

    A standard deviation ``spread`` makes the images count for less.
    """
    variance = share * (1 - share) / (count + 1) + spread**2
    total = max(share * (1 - share) / variance - 1, 1.0)
    low, high = beta.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2], share * total, (1 - share) * total)
    return float(low), float(high)


def expect(evidence: Evidence, measured: Measured, priors: Priors = MEASURED) -> Expected:
    """Return what is expected with all labels."""
    labels = evidence.labels_a_class(evidence.labels)
    hits = measured.hits.items()
    shares = {name: evidence.share_of(right, measured.images) for name, right in hits}
    doubling = dict.fromkeys((PROBE, LARGER_PROBE), priors.probe_doubling)
    doubling |= dict.fromkeys((STUDENT, TARGETS), priors.doubling)
    # the models of the folds saw fewer labels
    steps = log2(labels / measured.labels) if measured.labels else 0.0

    def accuracy(name: str, right: float = 0.5, count: float = 1.0, shift: float = 0.0) -> Accuracy:
        judged, (gain, deviation) = shares.get(name, torch.zeros(0)), doubling.get(name, (0.0, 0.0))
        right += float(judged.sum()) + len(judged) * steps * gain
        count += len(judged)
        value = min(max(right / count + shift, 0.01), 0.99)
        spread = hypot(priors.training[1], steps * deviation)
        return Accuracy(value, interval(value, count, spread))

    # the student's confidence counts as labelled images
    by_chance = accuracy(ZERO_SHOT).interval[0] < 1 / evidence.log_probabilities.shape[1]
    offset, by_labels = priors.offset
    confidence = measured.confidence + offset + (0 if by_chance else by_labels / max(labels, 1.0))
    rows = {STUDENT: accuracy(STUDENT, priors.worth * confidence, priors.worth, priors.training[0])}
    rows |= {name: accuracy(name) for name in MODELS if name in shares and name != STUDENT}

    # the learning curves, over labels of validation images too
    all_labels = evidence.labels_a_class(evidence.truth)
    curves = {
        name: [
            (all_labels * 2**step, min(rows[name].value + step * doubling[name][0], 1.0))
            for step in (-1, 0, 1)
        ]
        for name in (PROBE, STUDENT)
        if name in rows
    }
    more, half = priors.doubling[0], _Z * priors.doubling[1]

    # student against probe: what is measured, and what other domains say
    over_probe = None
    if PROBE in rows:
        difference = shares[STUDENT] - shares[PROBE]
        gain, fall, deviation = priors.gain
        # one image shows no variance; that of a difference of two hits is at most 1
        measured_variance = float(difference.var()) if len(difference) > 1 else 1.0
        variance = measured_variance / len(difference) + priors.training[1] ** 2
        weight = variance / (variance + deviation**2)
        value = weight * (gain * labels**-fall + priors.training[0])
        value += (1 - weight) * (rows[STUDENT].value - rows[PROBE].value)
        margin = _Z * deviation * weight**0.5
        over_probe = Accuracy(value, (value - margin, value + margin))
    groups = len(next(iter(shares.values())))
    more_labels = Accuracy(more, (more - half, more + half))
    return Expected(rows, curves, more_labels, over_probe, groups, by_chance)


class Limit(NamedTuple):
    """A limit of the student: a key of the template, what to say, and the gain if that is known."""

    key: str
    about: Any = None
    gain: Accuracy | None = None


def describe(frozen: Frozen, measured: Measured, names: Sequence[str]) -> dict[str, Any]:
    """Return the values of both templates; without labels, nothing is expected."""
    if not len(measured.images):
        chosen = MULTI_CLASS.labels(frozen.still[: frozen.pool]).bincount(minlength=len(names))
        doubtful = zip(("names", "frequent"), unlike_share(chosen), strict=True)
        limits = [Limit(key, [names[c] for c in of]) for key, of in doubtful if of]
        return {"expected": None, "judged": False, "images": 0, "unjudged": 0, "limits": limits}
    evidence, classes, expected = frozen.evidence, len(names), expect(frozen.evidence, measured)
    rows, judged = expected.rows, STUDENT in measured.hits

    # right and all judging groups of each class
    pair, sizes = evidence.merged(measured.images)
    truth = torch.zeros_like(sizes).index_copy(0, pair, evidence.truth[measured.images])
    chosen = F.one_hot(truth, classes).float()
    total = chosen.sum(dim=0).tolist()
    right, by_name = (
        (evidence.share_of(measured.hits[name], measured.images) @ chosen).tolist()
        for name in (STUDENT if judged else ZERO_SHOT, ZERO_SHOT)
    )
    mean = sum(right) / sum(total)
    weak = sorted((right[c] / total[c], c) for c in range(classes) if right[c] < mean * total[c])

    # what limits, the largest gain first, and gains that nobody can know last
    limits = [Limit("labels", gain=expected.more)] if expected.more.value > _CLEAR / 2 else []
    if judged and rows[TARGETS].value - rows[STUDENT].value > _CLEAR:
        (low, high), value = rows[TARGETS].interval, rows[STUDENT].value
        gain = Accuracy(rows[TARGETS].value - value, (low - value, high - value))
        limits.append(Limit("network", gain=gain))
    limits.sort(key=lambda limit: -limit.gain.value if limit.gain else 0)
    unknown = [names[c] for c in range(classes) if total[c] > 1 and by_name[c] < total[c] / 4]
    better_names = [Limit("names", unknown)] if unknown else []
    better_teacher = list[Limit]()
    if judged and 1 - rows[TARGETS].value > 2 * _CLEAR:
        better_teacher = [Limit("teacher", rows[TARGETS].value)]
    if expected.by_chance:
        # names do not help a teacher that knows nothing of the domain
        limits = [*better_teacher, *limits]
    else:
        limits = [*limits, *better_names, *better_teacher]
    limits += [Limit("images", frozen.pool)] * (frozen.pool < 20 * classes)

    curves = {name: [(n, 100 * share) for n, share in c] for name, c in expected.curves.items()}
    return {
        "expected": expected,
        "judged": judged,
        "images": len(measured.images),
        "unjudged": total.count(0),
        "weak": [(names[c], right[c], int(total[c])) for _, c in weak[:_SHOWN]] if judged else [],
        "limits": limits,
        "chart": line_chart("expected accuracy, %", curves),
    }
