"""Expected accuracies with intervals, and the learning curve, from held-out predictions."""

from typing import NamedTuple

from scipy.stats import beta, norm
from torch import Tensor

from kdpl.report.estimate import folds
from kdpl.report.estimate.folds import PROBE, STUDENT, Measured, labels_a_class
from kdpl.report.intervals import Accuracy, Interval
from kdpl.targets.refinement.experts import Evidence

LEVEL = 0.9
_Z = float(norm.ppf((1 + LEVEL) / 2))


class Priors(NamedTuple):
    """What was measured on other domains by ``python -m benchmarks.estimate`` (docs/own_data.md).

    Attributes:
        offset: Accuracy of the student minus its confidence.
        worth: Labelled images that its confidence is worth.
        exponent: Exponent b of error ∝ labels^−b of students.
        probe_exponent: The same of probes.
        deviation: Standard deviation of b.
        gain: Gain of a student over the probe of its network with one label a class.
        fall: Exponent of labels a class by which that gain falls.
        gain_deviation: Standard deviation of the gain.
        training: Standard deviation of a trained student's accuracy around the linear one's.
    """

    offset: float = -0.04
    worth: float = 40
    exponent: float = 0.2
    probe_exponent: float = 0.35
    deviation: float = 0.2
    gain: float = 0.17
    fall: float = 0.75
    gain_deviation: float = 0.05
    training: float = 0.03


MEASURED = Priors()


class Expected(NamedTuple):
    """What is expected with all labels.

    Attributes:
        rows: Accuracy of each model.
        curves: Accuracies with half, all and twice the labels, of student and its probe.
        more: The student's gain by twice the labels.
        over_probe: Its gain over the probe of its network; None if nothing measures that.
        labels: Labelled groups a class, in the mean.
        groups: Number of groups that judge.
    """

    rows: dict[str, Accuracy]
    curves: dict[str, list[tuple[float, float]]]
    more: Accuracy
    over_probe: Accuracy | None
    labels: float
    groups: int


def interval(share: float, count: float, spread: float = 0.0) -> Interval:
    """Return the interval of a share of ``count`` images, quantiles of a beta distribution.

    A standard deviation ``spread`` makes the images count for less.
    """
    variance = share * (1 - share) / (count + 1) + spread**2
    total = max(share * (1 - share) / variance - 1, 1.0)
    low, high = beta.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2], share * total, (1 - share) * total)
    return float(low), float(high)


def by_group(evidence: Evidence, measured: Measured, name: str) -> Tensor:
    """Return a model's share of hits in each group and class, float [P]."""
    pair, sizes = evidence.merged(measured.images)
    return measured.hits[name].new_zeros(len(sizes)).index_add(0, pair, measured.hits[name]) / sizes


def expect(evidence: Evidence, measured: Measured, priors: Priors = MEASURED) -> Expected:
    """Return what is expected with all labels."""
    labels = labels_a_class(evidence, evidence.labels)
    shares = {name: by_group(evidence, measured, name) for name in measured.hits}
    exponents = dict.fromkeys((PROBE, folds.LARGER_PROBE), priors.probe_exponent)
    exponents |= dict.fromkeys((STUDENT, folds.TARGETS), priors.exponent)
    rows = dict[str, Accuracy]()
    for name in folds.MODELS:
        count, right = 1.0, 0.5
        if name == STUDENT:
            # its confidence counts as labelled images
            sure = min(max(measured.confidence + priors.offset, 0.02), 0.98)
            count, right = priors.worth, priors.worth * sure
        if name in shares:
            # the models of the folds saw fewer labels
            more = labels / measured.labels if name in exponents else 1.0
            error = (1 - float(shares[name].mean())) * more ** -exponents.get(name, 0)
            count, right = count + len(shares[name]), right + len(shares[name]) * (1 - error)
        if name in shares or name == STUDENT:
            spread = priors.training if name in (STUDENT, folds.PUBLISHED) else 0.0
            rows[name] = Accuracy(right / count, interval(right / count, count, spread))

    # the learning curves
    error, b = 1 - rows[STUDENT].value, priors.exponent
    low, more, high = (
        error * (1 - 2 ** -max(b + z * priors.deviation, 0.0)) for z in (-_Z, 0.0, _Z)
    )
    curves = {
        name: [
            (labels * part, 1 - (1 - rows[name].value) * part ** -exponents[name])
            for part in (0.5, 1.0, 2.0)
        ]
        for name in (STUDENT, PROBE)
        if name in rows and labels
    }

    # student against probe: what is measured, and what other domains say
    over_probe = None
    if PROBE in rows:
        difference = shares[STUDENT] - shares[PROBE]
        variance = float(difference.var()) / len(difference) + priors.training**2
        precision, weight = 1 / variance, priors.gain_deviation**-2
        value = precision * (rows[STUDENT].value - rows[PROBE].value)
        value += weight * priors.gain * labels**-priors.fall
        value, half = value / (precision + weight), _Z * (precision + weight) ** -0.5
        over_probe = Accuracy(value, (value - half, value + half))
    groups = len(next(iter(shares.values()), ()))
    return Expected(rows, curves, Accuracy(more, (low, high)), over_probe, labels, groups)
