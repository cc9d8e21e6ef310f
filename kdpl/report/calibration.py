"""How far a student's confidences can be trusted, and the temperature that makes them better ones."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import SequentialSampler

from kdpl.data.datasets import EvaluationImages
from kdpl.data.loader import LazyLoader
from kdpl.errors import DataError, KdplError
from kdpl.report.cost import device
from kdpl.report.run_folder import Run, Stage
from kdpl.report.statistics import TEMPERATURES, Bin, Floats, calibration_error, fit_temperature, reliability
from kdpl.runtime.logit_sketch import LogitSketch

MAX_IMAGES = 2000
"""Validation images that a temperature is fitted on; one number needs no more, and a large student takes its time."""


@dataclass(frozen=True)
class Diagram:
    """Confidences against accuracies.

    Attributes:
        title: At which temperature.
        bins: Of the test images' answers.
        error: Their expected calibration error.
    """

    title: str
    bins: list[Bin]
    error: float


@dataclass(frozen=True)
class Calibration:
    """Calibration on the test images.

    Attributes:
        before: As the classifier is.
        after: At the temperature that was fitted; None where it could not be.
        temperature: That temperature.
        images: How many validation images it was fitted on.
        gap: Why there is no temperature, or what is wrong with it.
    """

    before: Diagram
    after: Diagram | None
    temperature: float | None
    images: int
    gap: str | None


def calibrate(run: Run, stage: Stage) -> Calibration:
    """Measure a student's calibration on the test images, before and after a temperature from the validation split.

    Raises:
        ArtifactError: It was not tested.
    """
    right = stage.right
    confidences = np.array([a.probability for a in stage.answers])
    before = _diagram("as it is", confidences, right)
    try:
        sketch = LogitSketch.load(stage.folder)
        logits, labels = validation_logits(run)
    except (KdplError, OSError) as error:
        return Calibration(before, None, None, 0, str(error))
    temperature = fit_temperature(logits, labels)
    if temperature in TEMPERATURES:
        gap = f"on {len(labels)} validation images no temperature from {TEMPERATURES[0]} to {TEMPERATURES[1]} is best"
        return Calibration(before, None, None, len(labels), gap)
    after = _diagram(f"at temperature {temperature:.2f}", sketch.confidences(temperature), right)
    return Calibration(before, after, temperature, len(labels), None)


def _diagram(title: str, confidences: Floats, right: npt.NDArray[np.bool_]) -> Diagram:
    bins = reliability(confidences, right)
    return Diagram(title, bins, calibration_error(bins))


@torch.inference_mode()
def validation_logits(run: Run) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Classify the validation images with the student's classifier.

    Returns:
        Logits [N, C] and labels [N].

    Raises:
        KdplError: There is no classifier, no validation split, or the dataset is missing or another one.
    """
    classifier, data, where = run.classifier, run.data, device()
    classifier.vectors.require_names(data.class_names, "the classifier")
    records = data.splits.val
    if not records:
        raise DataError(f"{data.splits.origin} has no val split: add one")
    count = min(len(records), MAX_IMAGES)
    chosen = [records[i * len(records) // count] for i in range(count)]
    spread = EvaluationImages(chosen, data.splits.open_image, classifier.preprocessing.image_size)
    loader = LazyLoader(spread, SequentialSampler(spread), data.eval_batch_size, data.num_workers)
    moved = classifier.to(where)
    logits, labels = [], []
    for images, batch_labels, _ in loader:
        logits.append(moved(images.to(where)).float().cpu())
        labels.append(batch_labels)
    return torch.cat(logits).double().numpy(), torch.cat(labels).numpy()
