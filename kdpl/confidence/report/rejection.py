"""Rejection on the test images: error against coverage, wanted errors, and rejected images.

The rejected images are those of one of the wanted errors.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdpl.confidence.held_out import CONFIDENCE, HeldOutScores, held_out_of
from kdpl.confidence.report.calibration import Bools, Floats
from kdpl.errors import ArtifactError, ConfigError, KdplError
from kdpl.report.accuracy import thumbnail
from kdpl.report.charts import line_chart
from kdpl.report.intervals import wilson
from kdpl.report.run_folder import Run
from kdpl.runtime.predictions import ImagePrediction, spread

WANTED = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Wanted errors whose thresholds are shown."""
MAX_IMAGES = 24
"""Largest number of rejected images."""
_MAX_POINTS = 200


def rejection(run: Run) -> dict[str, Any]:
    """Collect how many test images thresholds accept, and how many of these are wrong."""
    stage = run.student
    if stage is None:
        raise ArtifactError("there is no student: rejection is that of a classifier")
    predictions = stage.predictions
    scores = np.array([p.probability for p in predictions])
    correct = np.array([p.correct for p in predictions])
    chart = _risk_coverage(scores, correct)
    facts: dict[str, Any] = {"chart": chart, "rows": [], "rejects": None, "gap": None}
    try:
        held_out = held_out_of(run.classifier)
    except (KdplError, OSError) as error:
        return {**facts, "gap": str(error)}
    rows = [_row(held_out, wanted, scores, correct) for wanted in WANTED]
    if kept := next((row for row in rows if row["gap"] is None), None):
        facts["rejects"] = _rejects(run, kept, predictions)
    return {**facts, "rows": rows, "images": len(held_out), "confidence": CONFIDENCE}


def _row(held_out: HeldOutScores, wanted: float, scores: Floats, correct: Bools) -> dict[str, Any]:
    try:
        threshold = held_out.threshold(wanted)
    except ConfigError as error:
        return {"wanted": wanted, "gap": str(error)}
    accepted = scores >= threshold
    count, right = int(accepted.sum()), int((accepted & correct).sum())
    row = {"wanted": wanted, "gap": None, "threshold": threshold, "coverage": count / len(scores)}
    if not count:
        return {**row, "error": None}
    # of a Wilson interval of the correct ones
    low, high = wilson(right, count)
    return {**row, "error": (1 - right / count, 1 - high, 1 - low)}


def _rejects(
    run: Run, kept: dict[str, Any], predictions: Sequence[ImagePrediction]
) -> dict[str, Any]:
    """Images that a threshold rejects, the least probable first, and some of them to look at."""
    below = [p for p in predictions if p.probability < kept["threshold"]]
    below.sort(key=lambda p: p.probability)
    shown, gap = [], None
    try:
        read = run.tested_data().test_item
        some = spread(below, MAX_IMAGES)
        shown = [{"image": each, **thumbnail(read(each.index)[1])} for each in some]
    except (KdplError, OSError) as error:
        gap = str(error)
    facts = {"wanted": kept["wanted"], "count": len(below), "shown": shown, "gap": gap}
    return {**facts, "wrong": sum(not p.correct for p in below)}


def _risk_coverage(scores: Floats, correct: Bools) -> dict[str, Any] | None:
    """Return the error in % among the images of the highest scores, by their share in %.

    Images of equal scores are taken together.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-1.0))
    errors = np.cumsum(~correct[order])[ends] / (ends + 1)
    shares = 100 * (ends + 1) / len(scores)
    *points, last = zip(shares.tolist(), (100 * errors).tolist(), strict=True)
    # the last one is that of all images
    line = [*spread(points, _MAX_POINTS), last]
    return line_chart("error of the accepted images, %", {"student": line})
