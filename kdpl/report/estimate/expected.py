"""Measured accuracies with intervals, the learning curve, and what limits the student."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor
from torch.nn import functional as F

from kdpl.report.charts import line_chart
from kdpl.report.estimate.folds import (
    LARGER_PROBE,
    MODELS,
    PROBE,
    SHARES,
    STUDENT,
    TARGETS,
    ZERO_SHOT,
    Frozen,
    Measured,
)
from kdpl.report.intervals import Accuracy, wilson
from kdpl.targets.refinement.experts import Evidence
from kdpl.targets.refinement.refine import standardize
from kdpl.targets.refinement.target import unlike_share
from kdpl.tasks import MULTI_CLASS

LEVEL = 0.9
_CLEAR = 0.02  # smaller gains are not worth a sentence
_SHOWN = 5  # classes
_USUAL = 0.05  # share of the labelled images that count as unlike the others


class Expected(NamedTuple):
    """What is measured with nearly all labels.

    Attributes:
        rows: Accuracy of each model.
        curves: Labels a class and accuracies of student and its probe, the fewest labels first.
        more: The student's gain by the last doubling of the labels; None if there was none.
        over: Its gain over the probe of its network, and of the teacher's, by name.
        groups: Number of groups that judge.
    """

    rows: dict[str, Accuracy]
    curves: dict[str, list[tuple[float, float]]]
    more: Accuracy | None
    over: dict[str, Accuracy]
    groups: int


def paired(difference: Tensor) -> Accuracy:
    """Return the mean of paired differences [P] with its interval.

    The variance is that of the differences and of one more of 1, as a few equal ones show none.
    """
    values = np.append(difference.double().numpy(), [1.0, -1.0])
    count, mean = len(difference), difference.mean().item()
    deviation = (np.square(values - mean).sum() / max(count - 1, 1)) ** 0.5
    margin = float(student_t.ppf((1 + LEVEL) / 2, max(count - 1, 1))) * deviation / count**0.5
    return Accuracy(mean, (max(mean - margin, -1.0), min(mean + margin, 1.0)))


def share_of(evidence: Evidence, values: Tensor, images: Tensor) -> Tensor:
    """Return the mean of values [n] of images [n] over each pair of group and class, float [P]."""
    pairs = evidence.pairs[images]
    _, pair, sizes = torch.unique(pairs, return_inverse=True, return_counts=True)
    sums = torch.zeros_like(sizes, dtype=torch.float).index_add(0, pair, values.float())
    mean: Tensor = sums / sizes
    return mean


def expect(evidence: Evidence, measured: Measured, whole: bool = True) -> Expected:
    """Return what is measured; a student that learns more than a projector lies below its targets.

    Args:
        evidence: Labels and groups of the images.
        measured: Predictions.
        whole: Whether the projector is all that the student learns.
    """
    shares = {
        share: {
            name: share_of(evidence, right, measured.images).cpu()
            for name, right in of_share.items()
        }
        for share, of_share in measured.hits.items()
    }
    best = shares[1.0]
    groups = len(next(iter(best.values())))
    rows = {
        name: Accuracy(
            best[name].mean().item(), wilson(round(best[name].sum().item()), groups, LEVEL)
        )
        for name in MODELS
        if name in best
    }
    if not whole and STUDENT in rows:
        ends = rows[STUDENT], rows[TARGETS]
        value = (ends[0].value + ends[1].value) / 2
        low, high = min(end.interval[0] for end in ends), max(end.interval[1] for end in ends)
        rows[STUDENT] = Accuracy(value, (low, high))

    # by labels
    used = [share for share in reversed(SHARES) if share in measured.labels]
    curves = {
        name: [(measured.labels[share], shares[share][name].mean().item()) for share in used]
        for name in (PROBE, STUDENT)
        if name in best
    }
    more = paired(best[STUDENT] - shares[0.5][STUDENT]) if 0.5 in used else None

    # against the probes, on the same images
    over = {
        name: paired(best[STUDENT] - best[name])
        for name in (PROBE, LARGER_PROBE)
        if STUDENT in best
    }
    return Expected(rows, curves, more, over, groups)


def unlike(frozen: Frozen) -> float:
    """Return the share of the pool that is unlike the labelled images; 0 if few can tell.

    An image is unlike them if its cosine with the nearest of them is below that of nearly all
    labelled images with the nearest labelled image of another group.
    """
    evidence = frozen.evidence
    labeled = torch.nonzero(evidence.truth >= 0).flatten()
    if len(labeled) < 2:
        return 0.0
    features = F.normalize(standardize(evidence.features), dim=1)
    near = features[labeled] @ features[labeled].T
    same = evidence.groups[labeled][:, None] == evidence.groups[labeled]
    limit = near.masked_fill(same, -1).amax(dim=1).quantile(_USUAL)
    unlabeled = torch.nonzero(evidence.truth[: frozen.pool] < 0).flatten()
    if not len(unlabeled):
        return 0.0
    below = [
        (features[part] @ features[labeled].T).amax(dim=1) < limit
        for part in torch.split(unlabeled, 4096)
    ]
    return torch.cat(below).float().mean().item()


class Limit(NamedTuple):
    """A limit of the student: a key of the template, what to say, and the gain if that is known."""

    key: str
    about: Any = None
    gain: Accuracy | None = None


def describe(frozen: Frozen, measured: Measured, names: Sequence[str]) -> dict[str, Any]:
    """Return the values of both templates; without labels, nothing is expected."""
    chosen = MULTI_CLASS.labels(frozen.still[: frozen.pool]).bincount(minlength=len(names))
    doubtful = [
        (key, [names[c] for c in classes])
        for key, classes in zip(("names", "frequent"), unlike_share(chosen), strict=True)
    ]
    values: dict[str, Any] = {
        "expected": None,
        "judged": False,
        "images": len(measured.images),
        "unjudged": 0,
        "agreement": measured.agreement,
        "whole": frozen.whole,
        "unlike": unlike(frozen),
    }
    if not len(measured.images):
        return values | {"limits": [Limit(key, names_of) for key, names_of in doubtful if names_of]}
    evidence, classes = frozen.evidence, len(names)
    expected = expect(evidence, measured, frozen.whole)
    rows, judged = expected.rows, STUDENT in expected.rows

    # right and all judging groups of each class
    truth = share_of(evidence, evidence.truth[measured.images], measured.images).long()
    one_hot = F.one_hot(truth, classes).float()
    total = one_hot.sum(dim=0).tolist()
    right, by_name = (
        (share_of(evidence, measured.hits[1.0][name], measured.images) @ one_hot).tolist()
        for name in (STUDENT if judged else ZERO_SHOT, ZERO_SHOT)
    )
    mean = sum(right) / sum(total)
    weak = sorted((right[c] / total[c], c) for c in range(classes) if right[c] < mean * total[c])

    # what limits, the largest gain first, and gains that nobody can know last
    more, limits = expected.more, list[Limit]()
    if more is not None and more.value > _CLEAR / 2:
        limits.append(Limit("labels", gain=more))
    if judged and rows[TARGETS].value - rows[STUDENT].value > _CLEAR:
        targets, student = (measured.hits[1.0][name] for name in (TARGETS, STUDENT))
        difference = share_of(evidence, targets - student, measured.images).cpu()
        limits.append(Limit("network", gain=paired(difference)))
    limits.sort(key=lambda limit: -limit.gain.value if limit.gain else 0)
    unknown = [names[c] for c in range(classes) if total[c] > 1 and by_name[c] < total[c] / 4]
    if judged:
        doubtful = [("names", unknown)]
    limits += [Limit(key, names_of) for key, names_of in doubtful if names_of]
    if judged and 1 - rows[TARGETS].value > 2 * _CLEAR:
        limits.append(Limit("teacher", rows[TARGETS].value))
    limits += [Limit("images", frozen.pool)] * (frozen.pool < 20 * classes)

    curves = {name: [(n, 100 * share) for n, share in c] for name, c in expected.curves.items()}
    return values | {
        "expected": expected,
        "judged": judged,
        "unjudged": total.count(0),
        "weak": [(names[c], right[c], int(total[c])) for _, c in weak[:_SHOWN]] if judged else [],
        "limits": limits,
        "chart": line_chart("accuracy on labelled images, %", curves),
    }
