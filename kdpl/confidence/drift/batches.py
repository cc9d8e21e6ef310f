"""Comparison of new images with a classifier's pool, without labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdpl.classifier import Classifier
from kdpl.classifier.sources import Item, printable, read_items
from kdpl.confidence.drift.image_sample import MAX_IMAGES, ImageSample
from kdpl.confidence.drift.two_samples import (
    Comparison,
    above_usual,
    compare,
    distances_to,
    least_sure,
)
from kdpl.confidence.held_out import to_calibrate
from kdpl.confidence.unknown import NAME, REMEDY, Unknown, usual_score
from kdpl.errors import DataError

MIN_IMAGES = 20
"""Smallest number of images on either side; below, intervals are 40 points wide or more."""

_FARTHEST = 10  # number of images that the summary names
_ALARMS = {
    "rejected": "more images are rejected",
    "classes": "classes are predicted at other frequencies",
    "distance": "images are farther from the pool",
    "unknown": "more images look like none of the classes",
}


@dataclass(frozen=True)
class Batch:
    """Names of images, and a classifier's results; unreadable images apart."""

    names: list[str]
    sample: ImageSample
    unreadable: list[str]


def read_batch(classifier: Classifier, sources: Sequence[str], option: str) -> Batch:
    """Classify the images of an option's files and shards; a DataError for too few."""
    names, predicted, unreadable = [], [], []
    predictions = classifier.predictions(
        read_items(sources), partial(Item.open, decoding=classifier.decoding)
    )
    for item, result in predictions:
        if isinstance(result, DataError):
            unreadable.append(str(result))
        else:
            names.append(printable(item.name))
            predicted.append(result)
    if len(predicted) < MIN_IMAGES:
        problem = (
            f"it takes {MIN_IMAGES} images or more to compare them, and {option} has "
            f"{len(predicted)}: give more"
        )
        for first in unreadable[:1]:
            problem += f"; the first of {len(unreadable)} unreadable ones: {first}"
        raise DataError(problem)
    return Batch(names, ImageSample.of(predicted, classifier.class_names), unreadable)


@torch.inference_mode()
def unknown_scores(classifier: Classifier, sample: ImageSample) -> Tensor:
    """Score images as being none of the classes, [N]."""
    features = sample.features.float().to(classifier.head.class_vectors.device)
    return classifier.scores(features)[NAME].cpu()


def compare_samples(
    classifier: Classifier,
    pool: ImageSample,
    new: ImageSample,
    threshold: float | None,
    trained_on: bool,
) -> tuple[Comparison, float | None, str | None]:
    """Compare by ``compare``, and by the score of being none of the classes.

    The arguments are the same as for ``compare_batches``. Returns the comparison, and the limit of
    the score or the reason why there is none.
    """
    comparison = compare(pool, new, len(classifier.class_names), threshold)
    unknown = classifier.companions.get(NAME)
    if not isinstance(unknown, Unknown):
        return comparison, None, f"this classifier has no scores of that: {REMEDY}"
    limit, images = 0.5, unknown.held_out
    if not trained_on:
        # otherwise the pool gives no limit: an encoder that has learned its images finds them usual
        limit, images = usual_score(unknown_scores(classifier, pool)), len(pool)
    if images is None:
        # a file of an earlier version lacks the number of held-out images, too
        missing = (
            "this classifier does not know its limit of 0.5 from held-out images: give images like "
            f"those of the pool by --against, or {to_calibrate(classifier.folder)}"
        )
        return comparison, None, missing
    above = int((unknown_scores(classifier, new) > limit).sum())
    return comparison.with_unknown(above_usual(above, len(new), images)), limit, None


def compare_batches(
    classifier: Classifier,
    pool: ImageSample,
    new: Batch,
    threshold: float | None,
    false_alarms: float,
    trained_on: bool,
) -> tuple[dict[str, Any], str | None]:
    """Compare new images with a sample of the pool.

    Args:
        classifier: The classifier of both.
        pool: At least ``MIN_IMAGES`` images of the pool.
        new: The new images.
        threshold: Smallest probability that is not rejected; None: below that of most of the
            pool.
        false_alarms: Share of batches like the pool that may be said to differ, see ``compare``.
        trained_on: Whether the classifier was trained on the images of the pool.

    Returns:
        The summary that the command prints, and why images of none of the classes are not
        compared, if so.
    """
    # test for differences
    sample, names = new.sample, classifier.class_names
    comparison, limit, missing = compare_samples(
        classifier, pool, sample.draw(MAX_IMAGES), threshold, trained_on
    )
    questions = comparison.questions
    alarms = [question for question, p_value in questions.items() if p_value <= false_alarms]

    threshold = least_sure(pool.scores.numpy()) if threshold is None else threshold
    rejected, rejected_of_pool = (
        round((side.scores.double() < threshold).double().mean().item(), 4)
        for side in (sample, pool)
    )
    unknown = None
    if limit is not None:
        above = unknown_scores(classifier, sample) > limit
        unknown = round(float(above.float().mean()), 4)

    of_pool, of_new = (
        side.labels.bincount(minlength=len(names)) / len(side) for side in (pool, sample)
    )
    p_values = comparison.classes if "classes" in alarms else []
    changed = [number for number, p_value in enumerate(p_values) if p_value <= false_alarms]
    changed.sort(key=lambda number: (-abs(float(of_new[number] - of_pool[number])), names[number]))

    far = distances_to(pool.features, sample.features)
    summary = {
        "differs": bool(alarms),
        "because": [_ALARMS[question] for question in alarms],
        "images": len(sample),
        "unreadable": len(new.unreadable),
        "rejected": rejected,
        "rejected_of_pool": rejected_of_pool,
        "unknown": unknown,
        "p_values": {question: round(p_value, 4) for question, p_value in questions.items()},
        "changed_classes": [names[number] for number in changed],
        "farthest": [new.names[i] for i in np.argsort(-far)[:_FARTHEST].tolist()],
    }
    return summary, missing
