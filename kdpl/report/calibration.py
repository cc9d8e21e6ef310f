"""Calibration of a student's confidences, and the temperature that improves it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import SequentialSampler

from kdpl.data.datasets import EvaluationImages
from kdpl.data.loader import LazyLoader
from kdpl.errors import ArtifactError, DataError, KdplError
from kdpl.report.cost import device
from kdpl.report.run_folder import Run
from kdpl.report.statistics import TEMPERATURES, Bools, Floats, calibration_error, fit_temperature, reliability
from kdpl.runtime.logit_sketch import LogitSketch
from kdpl.runtime.predictions import spread

MAX_IMAGES = 2000
"""Largest number of validation images that the temperature is fitted on: one number needs no more."""


def calibrate(run: Run) -> dict[str, Any]:
    """Measure the student's calibration on the test images, before and after a fitted temperature."""
    stage = run.student
    if stage is None:
        raise ArtifactError("there is no student: calibration is that of a classifier")
    confidences = np.array([p.probability for p in stage.predictions])
    correct = np.array([p.correct for p in stage.predictions])
    found: dict[str, Any] = {"before": _diagram("as it is", confidences, correct), "after": None, "gap": None}
    try:
        sketch = LogitSketch.load(stage.folder)
        logits, labels = validation_logits(run)
        temperature, images = fit_temperature(logits, labels), len(labels)
        if temperature in TEMPERATURES:
            low, high = TEMPERATURES
            raise DataError(f"on {images} validation images no temperature from {low} to {high} is best")
    except (KdplError, OSError) as error:
        return {**found, "gap": str(error)}
    after = _diagram(f"at temperature {temperature:.2f}", sketch.confidences(temperature), correct)
    return {**found, "after": after, "temperature": temperature, "images": images}


def _diagram(title: str, confidences: Floats, correct: Bools) -> dict[str, Any]:
    bins = reliability(confidences, correct)
    return {"title": title, "bins": bins, "error": calibration_error(bins)}


@torch.inference_mode()
def validation_logits(run: Run) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Classify validation images with the student's classifier; returns logits [N, C] and labels [N]."""
    data, where = run.data, device()
    classifier = run.classifier.to(where)
    classifier.vectors.require_names(data.class_names, "the classifier")
    if not data.splits.val:
        raise DataError(f"{data.splits.origin} has no val split: add one")
    chosen = spread(data.splits.val, MAX_IMAGES)
    images = EvaluationImages(chosen, data.splits.open_image, classifier.preprocessing.image_size)
    loader = LazyLoader(images, SequentialSampler(images), data.eval_batch_size, data.num_workers)
    logits, labels = [], []
    for batch, batch_labels, _ in loader:
        logits.append(classifier(batch.to(where)).float().cpu())
        labels.append(batch_labels)
    return torch.cat(logits).double().numpy(), torch.cat(labels).numpy()
