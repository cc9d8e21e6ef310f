"""An estimate for page and terminal: what to expect, what limits it, and what to do next."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from kdpl.report.charts import line_chart
from kdpl.report.estimate.expected import by_group, expect
from kdpl.report.estimate.folds import STUDENT, TARGETS, ZERO_SHOT, Frozen, Measured
from kdpl.report.intervals import Accuracy

_CLEAR = 0.02  # smaller gains are not worth a sentence
_SHOWN = 5  # classes


class Limit(NamedTuple):
    """A limit of the student: a key of the template, what to say, and the gain if that is known."""

    key: str
    about: Any = None
    gain: Accuracy | None = None


def describe(frozen: Frozen, measured: Measured, names: Sequence[str]) -> dict[str, Any]:
    """Return the values of both templates; without labels, nothing is expected."""
    if not len(measured.images):
        return {"expected": None, "judged": False, "images": 0, "unjudged": 0}
    evidence, classes, expected = frozen.evidence, len(names), expect(frozen.evidence, measured)
    rows, judged = expected.rows, STUDENT in measured.hits

    # right and all judging groups of each class
    pair, sizes = evidence.merged(measured.images)
    truth = torch.zeros_like(sizes).index_copy(0, pair, evidence.truth[measured.images])
    chosen = F.one_hot(truth, classes).float()
    total = chosen.sum(dim=0).tolist()
    right, by_name = (
        (by_group(evidence, measured, name) @ chosen).tolist()
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
    limits += [Limit("names", unknown)] * bool(unknown)
    if judged and 1 - rows[TARGETS].value > 2 * _CLEAR:
        limits.append(Limit("teacher", rows[TARGETS].value))
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
