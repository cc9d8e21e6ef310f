"""Comparison of new images with a classifier's pool, without labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
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
from kdpl.confidence.unknown import NAME, REMEDY, Unknown, usual_rank
from kdpl.errors import DataError
from kdpl.tasks import DecisionRule

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
    # one unreadable image does not stop the comparison
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
            problem += f", the first of {len(unreadable)} unreadable ones because {first}"
        raise DataError(problem)
    return Batch(names, ImageSample.of(predicted, classifier.class_names), unreadable)


class Limit(NamedTuple):
    """A score of being none of the classes, and the number of unseen images it comes from."""

    score: float
    images: int


def find_limit(
    classifier: Classifier, reference: ImageSample | None
) -> tuple[Limit | None, str | None]:
    """Return the limit to compare new images with, or the reason why there is none.

    ``reference`` are images like the pool's. The pool itself gives no limit: an encoder that has
    learned its images finds them usual.
    """
    unknown = classifier.companions.get(NAME)
    if not isinstance(unknown, Unknown):
        return None, f"this classifier has no scores of that: {REMEDY}"
    if reference is not None:
        scores = unknown_scores(classifier, reference).sort().values
        return Limit(float(scores[usual_rank(len(scores)) - 1]), len(scores)), None
    if unknown.held_out is None:
        # a file of an earlier version lacks the number of validation images, too
        return None, (
            "this classifier does not know its limit of 0.5 from validation images: distil it with "
            "some (init --val-share), or give images like those of the pool by --against"
        )
    return Limit(0.5, unknown.held_out), None


@torch.inference_mode()
def unknown_scores(classifier: Classifier, sample: ImageSample) -> Tensor:
    """Score images as being none of the classes, [N]."""
    features = sample.features.float().to(classifier.head.class_vectors.device)
    return classifier.scores(features)[NAME].cpu()


def rejected_of(sample: ImageSample, rule: DecisionRule) -> npt.NDArray[np.bool_]:
    """Return which images are rejected, bool [N]."""
    return sample.scores.double().numpy() < (rule.threshold or 0.0)


def compare_with_limit(
    classifier: Classifier,
    pool: ImageSample,
    new: ImageSample,
    rule: DecisionRule | None,
    limit: Limit | None,
) -> Comparison:
    """Compare by ``compare``, and with the limit, if any; the default rule is the pool's."""
    rejected = None
    if rule is not None:
        rejected = np.concatenate([rejected_of(pool, rule), rejected_of(new, rule)])
    comparison = compare(pool, new, len(classifier.class_names), rejected)
    if limit is None:
        return comparison
    above = int((unknown_scores(classifier, new) > limit.score).sum())
    return comparison.with_unknown(above_usual(above, len(new), limit.images))


def compare_batches(
    classifier: Classifier,
    pool: ImageSample,
    new: Batch,
    rule: DecisionRule | None,
    false_alarms: float,
    trained_on: bool,
) -> tuple[dict[str, Any], str | None]:
    """Compare new images with a sample of the pool.

    Args:
        classifier: The classifier of both.
        pool: At least ``MIN_IMAGES`` images of the pool.
        new: The new images.
        rule: Rule that rejects images; None: reject largest probabilities below most of the
            pool's.
        false_alarms: Share of batches like the pool that may be said to differ, see ``compare``.
        trained_on: Whether the classifier was trained on the images of the pool.

    Returns:
        The summary that the command prints, and why images of none of the classes are not
        compared, if so.
    """
    # test for differences
    sample, names = new.sample, classifier.class_names
    drawn = sample.draw(MAX_IMAGES)
    limit, missing = find_limit(classifier, None if trained_on else pool)
    comparison = compare_with_limit(classifier, pool, drawn, rule, limit)
    questions = comparison.questions
    alarms = [question for question, p_value in questions.items() if p_value <= false_alarms]

    # shares of rejected and unusual images
    rule = DecisionRule(threshold=least_sure(pool.scores.numpy())) if rule is None else rule
    rejected, rejected_of_pool = (float(rejected_of(side, rule).mean()) for side in (sample, pool))
    unknown = None
    if limit is not None:
        unknown = float((unknown_scores(classifier, sample) > limit.score).float().mean())

    # classes at other frequencies, the largest changes first
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
        "rejected": round(rejected, 4),
        "rejected_of_pool": round(rejected_of_pool, 4),
        "unknown": None if unknown is None else round(unknown, 4),
        "p_values": {question: round(p_value, 4) for question, p_value in questions.items()},
        "changed_classes": [names[number] for number in changed],
        "farthest": [new.names[i] for i in np.argsort(-far)[:_FARTHEST].tolist()],
    }
    return summary, missing
