"""Report sections on calibration and rejection; only the report loads them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpl.confidence.held_out import CONFIDENCE, HeldOutScores, held_out_of, to_calibrate
from kdpl.confidence.labeled import encode_records
from kdpl.data.sampling import spread
from kdpl.errors import KdplError
from kdpl.report.accuracy import with_thumbnails
from kdpl.report.charts import line_chart
from kdpl.report.cost import device
from kdpl.report.intervals import Floats, wilson
from kdpl.report.page import Section
from kdpl.report.run_folder import Run, attempt
from kdpl.runtime.predictions import ImagePrediction
from kdpl.tasks import MULTI_CLASS

Bools = npt.NDArray[np.bool_]

NUM_BINS = 15
MAX_MEASURED = 2000
"""Largest number of test images to measure the calibration on, since they are classified again."""

WANTED = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Wanted errors whose thresholds are shown."""
MAX_REJECTED = 24
"""Largest number of shown rejected images."""
_MAX_POINTS = 200

_TEMPLATES = Path(__file__).parent / "templates"


def _scored(predictions: Sequence[ImagePrediction]) -> tuple[Floats, Bools]:
    scores = np.array([p.probability for p in predictions])
    return scores, np.array([p.correct for p in predictions])


def calibrate(run: Run) -> dict[str, Any]:
    """Measure the student's calibration on test images, before and after temperature scaling."""
    predictions = spread(run.require("student").predictions, MAX_MEASURED)
    confidences, correct = _scored(predictions)
    before = diagram("as it is", confidences, correct)
    facts: dict[str, Any] = {"before": before, "after": None, "gap": None}
    try:
        held_out = held_out_of(run.classifier)
        temperature = held_out.best_temperature()
        confidences = confidences_at(temperature, run, predictions)
    except (KdplError, OSError) as error:
        return {**facts, "gap": str(error)}
    after = diagram(f"at temperature {temperature:.2f}", confidences, correct)
    return {**facts, "after": after, "temperature": temperature, "images": len(held_out)}


def diagram(title: str, confidences: Floats, correct: Bools) -> dict[str, Any]:
    """Sort predictions [N] into 15 bins of confidence (Guo et al., arXiv 1706.04599, section 2).

    Each bin has its edges, its number of images, and their accuracy and mean confidence, 0 without
    an image. ``error`` is the expected calibration error, the mean distance of both.
    """
    edges = np.linspace(0, 1, NUM_BINS + 1)
    # bin i holds edges[i] < confidence <= edges[i + 1]; torchmetrics puts confidences of 1 apart
    number = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, NUM_BINS - 1)
    images = np.bincount(number, minlength=NUM_BINS)
    accuracy, confidence = (
        np.bincount(number, values, minlength=NUM_BINS) / np.maximum(images, 1)
        for values in (correct, confidences)
    )
    names = ("low", "high", "images", "accuracy", "confidence")
    columns = (edges[:-1], edges[1:], images, accuracy, confidence)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {
        "title": title,
        "bins": [dict(zip(names, row, strict=True)) for row in rows],
        "error": float(images @ np.abs(accuracy - confidence)) / len(correct),
    }


def confidences_at(temperature: float, run: Run, predictions: list[ImagePrediction]) -> Floats:
    """Return the classifier's largest probabilities [N] for test images, at a temperature."""
    data, classifier = run.tested_data(), run.classifier.to(device())
    chosen = [data.splits.test[p.index] for p in predictions]
    features, _ = encode_records(classifier, chosen, data.splits.open_image)
    logits = classifier.cpu().logits(features)
    probabilities = MULTI_CLASS.probabilities(logits.double() / temperature)
    confidences: Floats = probabilities.max(dim=1).values.numpy()
    return confidences


def rejection(run: Run) -> dict[str, Any]:
    """Collect how many test images each threshold accepts, and how many of them are wrong."""
    # the curve needs the test alone
    predictions = run.require("student").predictions
    scores, correct = _scored(predictions)
    facts: dict[str, Any] = {"chart": _risk_coverage(scores, correct)}
    held_out, gap = attempt(lambda: held_out_of(run.classifier))
    if held_out is None:
        return {**facts, "rows": [], "rejects": None, "gap": gap}
    rows = [_row(held_out, wanted, scores, correct) for wanted in WANTED]
    strictest = next((row for row in rows if row["gap"] is None), None)
    return {
        **facts,
        "rows": rows,
        "rejects": None if strictest is None else _rejects(run, strictest, predictions),
        "gap": None,
        "images": len(held_out),
        "confidence": CONFIDENCE,
        "more": to_calibrate(run.classifier.folder),
    }


def _row(held_out: HeldOutScores, wanted: float, scores: Floats, correct: Bools) -> dict[str, Any]:
    threshold, gap = attempt(lambda: held_out.threshold(wanted))
    if threshold is None:
        return {"wanted": wanted, "gap": gap}
    accepted = scores >= threshold
    count, right = int(accepted.sum()), int((accepted & correct).sum())
    row = {"wanted": wanted, "gap": gap, "threshold": threshold, "coverage": count / len(scores)}
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
    examples = [{"image": p, "source": p.source} for p in spread(below, MAX_REJECTED)]
    return {
        "wanted": row["wanted"],
        "count": len(below),
        "wrong": sum(not p.correct for p in below),
        **with_thumbnails(run.tested_data, examples),
    }


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


CALIBRATION = Section(
    "Calibration", calibrate, _TEMPLATES / "calibration.html.jinja", "confusions", wide=False
)
REJECTION = Section("Rejection", rejection, _TEMPLATES / "rejection.html.jinja", "calibration")
