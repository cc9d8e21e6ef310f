"""Rejection on the test images: error against coverage, wanted errors, and rejected images."""

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
"""Largest number of shown rejected images."""
_MAX_POINTS = 200


def rejection(run: Run) -> dict[str, Any]:
    """Collect how many test images each threshold accepts, and how many of them are wrong."""
    stage = run.student
    if stage is None:
        raise ArtifactError("there is no student: rejection needs a classifier")
    # the curve needs the test alone
    predictions = stage.predictions
    scores = np.array([p.probability for p in predictions])
    correct = np.array([p.correct for p in predictions])
    chart = _risk_coverage(scores, correct)
    facts: dict[str, Any] = {"chart": chart, "rows": [], "rejects": None, "gap": None}
    # thresholds need held-out images
    try:
        held_out = held_out_of(run.classifier)
    except (KdplError, OSError) as error:
        return {**facts, "gap": str(error)}
    rows = [_row(held_out, wanted, scores, correct) for wanted in WANTED]
    # examples for the smallest error that has a threshold
    if strictest := next((row for row in rows if row["gap"] is None), None):
        facts["rejects"] = _rejects(run, strictest, predictions)
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
    # the complement of a Wilson interval of the correct ones
    low, high = wilson(right, count)
    return {**row, "error": (1 - right / count, 1 - high, 1 - low)}


def _rejects(
    run: Run, row: dict[str, Any], predictions: Sequence[ImagePrediction]
) -> dict[str, Any]:
    below = [p for p in predictions if p.probability < row["threshold"]]
    below.sort(key=lambda p: p.probability)
    shown, gap = [], None
    try:
        read = run.tested_data().test_item
        examples = spread(below, MAX_IMAGES)
        shown = [{"image": image, **thumbnail(read(image.index)[1])} for image in examples]
    except (KdplError, OSError) as error:
        gap = str(error)
    facts = {"wanted": row["wanted"], "count": len(below), "shown": shown, "gap": gap}
    return {**facts, "wrong": sum(not p.correct for p in below)}


def _risk_coverage(scores: Floats, correct: Bools) -> dict[str, Any] | None:
    """Chart the error in % among the images with the highest scores, by their share in %."""
    # images with equal scores are accepted together
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-1.0))
    errors = np.cumsum(~correct[order])[ends] / (ends + 1)
    shares = 100 * (ends + 1) / len(scores)
    *points, last = zip(shares.tolist(), (100 * errors).tolist(), strict=True)
    # keep the last point, for all images
    line = [*spread(points, _MAX_POINTS), last]
    return line_chart("error of the accepted images, %", {"student": line})
