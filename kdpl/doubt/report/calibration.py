"""Calibration of a student's confidences, and the temperature that improves it."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import SequentialSampler

from kdpl.data.datasets import EvaluationImages
from kdpl.data.loader import LazyLoader
from kdpl.doubt.held_out import TEMPERATURES, classify, fit_temperature
from kdpl.doubt.logit_sketch import LogitSketch
from kdpl.errors import ArtifactError, DataError, KdplError
from kdpl.report.cost import device
from kdpl.report.run_folder import Run
from kdpl.runtime.predictions import spread

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

NUM_BINS = 15
MAX_IMAGES = 2000
"""Largest number of validation images to fit the temperature on: one number needs no more."""


def calibrate(run: Run) -> dict[str, Any]:
    """Measure the student's calibration on the test images.

    It is measured before and after a fitted temperature.
    """
    stage = run.student
    if stage is None:
        raise ArtifactError("there is no student: calibration is that of a classifier")
    confidences = np.array([p.probability for p in stage.predictions])
    correct = np.array([p.correct for p in stage.predictions])
    facts: dict[str, Any] = {
        "before": _diagram("as it is", confidences, correct),
        "after": None,
        "gap": None,
    }
    try:
        sketch = LogitSketch.load(stage.folder)
        logits, labels = validation_logits(run)
        temperature, images = fit_temperature(logits, labels), len(labels)
        if temperature in TEMPERATURES:
            low, high = TEMPERATURES
            raise DataError(
                f"on {images} validation images no temperature from {low} to {high} is best"
            )
    except (KdplError, OSError) as error:
        return {**facts, "gap": str(error)}
    after = _diagram(f"at temperature {temperature:.2f}", sketch.confidences(temperature), correct)
    return {**facts, "after": after, "temperature": temperature, "images": images}


def _diagram(title: str, confidences: Floats, correct: Bools) -> dict[str, Any]:
    bins = reliability(confidences, correct)
    return {"title": title, "bins": bins, "error": calibration_error(bins)}


def validation_logits(run: Run) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Classify validation images with the student's classifier.

    Returns logits [N, C] and labels [N].
    """
    data, where = run.data, device()
    classifier = run.classifier.to(where)
    classifier.vectors.require_names(data.class_names, "the classifier")
    if not data.splits.val:
        raise DataError(f"{data.splits.origin} has no val split: add one")
    chosen = spread(data.splits.val, MAX_IMAGES)
    images = EvaluationImages(chosen, data.splits.open_image, classifier.preprocessing.resizing)
    loader = LazyLoader(images, SequentialSampler(images), data.eval_batch_size, data.num_workers)
    logits, labels, _ = classify(classifier, loader, where)
    return logits.cpu().double().numpy(), labels.cpu().numpy()


class Bin(NamedTuple):
    """Predictions with ``low`` < confidence <= ``high``.

    An empty bin has accuracy and mean confidence 0.
    """

    low: float
    high: float
    images: int
    accuracy: float
    confidence: float


def reliability(confidences: Floats, correct: Bools) -> list[Bin]:
    """Sort predictions [N] into 15 bins by confidence in (0, 1].

    The bins are those of Guo et al., arXiv 1706.04599, section 2.
    """
    edges = np.linspace(0, 1, NUM_BINS + 1)
    # bin i holds edges[i] < confidence <= edges[i + 1]; torchmetrics has a bin of its own for a
    # confidence of 1
    number = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, NUM_BINS - 1)
    bins = []
    for i in range(NUM_BINS):
        inside = number == i
        count = int(inside.sum())
        means = (
            float(values[inside].mean()) if count else 0.0 for values in (correct, confidences)
        )
        bins.append(Bin(float(edges[i]), float(edges[i + 1]), count, *means))
    return bins


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: mean distance of accuracy and confidence over all predictions."""
    return sum(b.images * abs(b.accuracy - b.confidence) for b in bins) / sum(
        b.images for b in bins
    )
