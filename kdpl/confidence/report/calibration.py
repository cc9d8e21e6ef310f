"""Calibration of a student's confidences, and the temperature that improves it."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdpl.confidence.held_out import TEMPERATURES, held_out_of
from kdpl.confidence.labeled import classify_records
from kdpl.errors import ArtifactError, DataError, KdplError
from kdpl.report.cost import device
from kdpl.report.run_folder import Run
from kdpl.runtime.predictions import ImagePrediction, spread
from kdpl.tasks import MULTI_CLASS

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

NUM_BINS = 15
MAX_IMAGES = 2000
"""Largest number of test images to measure, since they are classified again."""


def calibrate(run: Run) -> dict[str, Any]:
    """Measure the student's calibration on test images, before and after temperature scaling."""
    stage = run.student
    if stage is None:
        raise ArtifactError("there is no student: calibration needs a classifier")
    # as it is
    predictions = spread(stage.predictions, MAX_IMAGES)
    confidences = np.array([p.probability for p in predictions])
    correct = np.array([p.correct for p in predictions])
    before = _diagram("as it is", confidences, correct)
    facts: dict[str, Any] = {"before": before, "after": None, "gap": None}
    # at the temperature of the held-out images
    try:
        held_out = held_out_of(run.classifier)
        temperature, images = held_out.temperature, len(held_out)
        if temperature in TEMPERATURES:
            low, high = TEMPERATURES
            raise DataError(
                f"on {images} held-out images no temperature from {low} to {high} is best"
            )
        confidences = confidences_at(temperature, run, predictions)
    except (KdplError, OSError) as error:
        return {**facts, "gap": str(error)}
    after = _diagram(f"at temperature {temperature:.2f}", confidences, correct)
    return {**facts, "after": after, "temperature": temperature, "images": images}


def _diagram(title: str, confidences: Floats, correct: Bools) -> dict[str, Any]:
    bins = reliability(confidences, correct)
    return {"title": title, "bins": bins, "error": calibration_error(bins)}


def confidences_at(temperature: float, run: Run, predictions: list[ImagePrediction]) -> Floats:
    """Return the classifier's largest probabilities [N] for test images, at a temperature."""
    data, classifier = run.tested_data(), run.classifier.to(device())
    chosen = [data.splits.test[p.index] for p in predictions]
    logits, _ = classify_records(classifier, chosen, data.splits.open_image, data.num_workers)
    probabilities = MULTI_CLASS.probabilities(logits.cpu().double() / temperature)
    confidences: Floats = probabilities.max(dim=1).values.numpy()
    return confidences


class Bin(NamedTuple):
    """Predictions with ``low`` < confidence <= ``high``; both means are 0 for an empty bin."""

    low: float
    high: float
    images: int
    accuracy: float
    confidence: float


def reliability(confidences: Floats, correct: Bools) -> list[Bin]:
    """Sort predictions [N] into 15 bins of confidence (Guo et al., arXiv 1706.04599, section 2)."""
    edges = np.linspace(0, 1, NUM_BINS + 1)
    # bin i holds edges[i] < confidence <= edges[i + 1]; torchmetrics puts confidences of 1 apart
    number = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, NUM_BINS - 1)
    # number and means of each bin
    images = np.bincount(number, minlength=NUM_BINS)
    accuracy, confidence = (
        np.bincount(number, values, minlength=NUM_BINS) / np.maximum(images, 1)
        for values in (correct, confidences)
    )
    columns = (edges[:-1], edges[1:], images, accuracy, confidence)
    return [Bin(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def calibration_error(bins: list[Bin]) -> float:
    """Return the expected calibration error: the mean distance of accuracy and confidence."""
    distances = sum(b.images * abs(b.accuracy - b.confidence) for b in bins)
    return distances / sum(b.images for b in bins)
