"""Comparison of new images with a classifier's pool, without labels, and its page."""

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
    distances_within,
    least_sure,
)
from kdpl.confidence.unknown import MIN_HELD_OUT, NAME, REMEDY, Unknown, share_above, usual_rank
from kdpl.errors import DataError
from kdpl.report.accuracy import thumbnail
from kdpl.report.intervals import wilson
from kdpl.report.page import fill
from kdpl.tasks import DecisionRule

MIN_IMAGES = 20
"""Smallest number of images on either side; below, intervals are 40 points wide or more."""

MAX_SHOWN = 24
"""Largest number of shown unusual images."""

_MAX_LISTED = 10
_BANDS = (0, 0.5, 0.9, 0.95, 0.99, 1)  # quantiles of distances within the pool
_ALARMS = {
    "rejected": "more images are rejected",
    "classes": "classes are predicted at other frequencies",
    "distance": "images are farther from the pool",
    "unknown": "more images look like none of the classes",
}


@dataclass(frozen=True)
class Batch:
    """Positions and names of images, and a classifier's results; unreadable images apart."""

    positions: list[int]
    names: list[str]
    sample: ImageSample
    unreadable: list[tuple[str, str]]


def read_batch(classifier: Classifier, sources: Sequence[str], option: str) -> Batch:
    """Classify the images of an option's files and shards; a DataError for too few."""
    positions, names, predicted, unreadable = [], [], [], []
    predictions = classifier.predictions(
        read_items(sources), partial(Item.open, decoding=classifier.decoding)
    )
    # one unreadable image does not stop the comparison
    for position, (item, result) in enumerate(predictions):
        if isinstance(result, DataError):
            unreadable.append((printable(item.name), str(result)))
        else:
            positions.append(position)
            names.append(printable(item.name))
            predicted.append(result)
    if len(predicted) < MIN_IMAGES:
        problem = (
            f"it takes {MIN_IMAGES} images or more to compare them, and {option} has "
            f"{len(predicted)}: give more"
        )
        for _, first in unreadable[:1]:
            problem += f", the first of {len(unreadable)} unreadable ones because {first}"
        raise DataError(problem)
    return Batch(positions, names, ImageSample.of(predicted, classifier.class_names), unreadable)


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
) -> dict[str, Any]:
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
        Data of the page, and the ``summary`` that the command prints.
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
    is_rejected = rejected_of(sample, rule)
    rejected = {"pool": _share(rejected_of(pool, rule)), "new": _share(is_rejected)}
    unknown = None
    if limit is not None:
        above = _share((unknown_scores(classifier, sample) > limit.score).numpy())
        unknown = {**limit._asdict(), "usual": share_above(limit.images), **above}

    # frequencies of predicted classes, the largest changes first
    p_values = comparison.classes if "classes" in alarms else [1.0] * len(names)
    rows = _class_changes(names, pool, sample, [p_value <= false_alarms for p_value in p_values])

    # distances to the pool, and the share of distances within the pool that are smaller
    within = np.sort(distances_within(pool.features))
    far = distances_to(pool.features, sample.features)
    ranks = np.searchsorted(within, far) / len(within)
    summary = {
        "differs": bool(alarms),
        "because": [_ALARMS[question] for question in alarms],
        "images": len(sample),
        "unreadable": len(new.unreadable),
        "rejected": round(rejected["new"]["share"], 4),
        "rejected_of_pool": round(rejected["pool"]["share"], 4),
        "unknown": None if unknown is None else round(unknown["share"], 4),
        "p_values": {question: round(p_value, 4) for question, p_value in questions.items()},
        "changed_classes": [row["name"] for row in rows if row["changed"]],
    }
    return {
        "summary": summary,
        "alarms": alarms,
        "false_alarms": false_alarms,
        "threshold": rule.threshold or 0.0,
        "unknown": unknown,
        "enough": MIN_HELD_OUT,
        "missing": missing,
        "p_values": questions,
        "sizes": {"pool": len(pool), "compared": len(drawn)},
        "rejected": rejected,
        "classes": rows,
        "bands": _bands(ranks),
        "medians": {"pool": np.median(within), "new": np.median(far)},
        "unusual": [
            _shown(new, i, names) | {"rejected": is_rejected[i], "rank": ranks[i]}
            for i in np.argsort(-far)[:MAX_SHOWN].tolist()
        ],
        "unreadable": new.unreadable[:_MAX_LISTED],
    }


def _bands(ranks: npt.NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return the share of new images in each band of ranks, and the pool's share."""
    shares = np.histogram(ranks, _BANDS)[0] / len(ranks)
    return [
        {"low": low, "high": high, "pool": high - low, "new": share}
        for low, high, share in zip(_BANDS[:-1], _BANDS[1:], shares, strict=True)
    ]


def _shown(new: Batch, i: int, names: Sequence[str]) -> dict[str, Any]:
    """Return an image as the page shows it, with its most probable class."""
    return {
        "position": new.positions[i],
        "name": new.names[i],
        "class": names[int(new.sample.labels[i])],
        "probability": new.sample.scores[i].item(),
    }


def _class_changes(
    names: Sequence[str], pool: ImageSample, sample: ImageSample, changed: Sequence[bool]
) -> list[dict[str, Any]]:
    """Return the frequencies of predicted classes, the largest changes first."""
    of_pool, of_new = (
        images.labels.bincount(minlength=len(names)).tolist() for images in (pool, sample)
    )
    rows = [
        {
            "name": name,
            "pool": of_pool[number] / len(pool),
            "new": of_new[number] / len(sample),
            "interval": wilson(of_new[number], len(sample)),
            "changed": changed[number],
        }
        for number, name in enumerate(names)
    ]
    return sorted(rows, key=lambda row: (-abs(row["new"] - row["pool"]), row["name"]))


def _share(flags: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return the share of true flags [N], with its interval."""
    count = int(flags.sum())
    return {"share": count / len(flags), "interval": wilson(count, len(flags))}


def render(
    comparison: dict[str, Any], classifier: Classifier, sources: Sequence[str], **facts: str | None
) -> str:
    """Return a comparison's HTML page, with thumbnails of unusual images, read again."""
    unusual = {image["position"]: image for image in comparison["unusual"]}
    for position, item in enumerate(read_items(sources)):
        if position in unusual:
            try:
                unusual[position] |= thumbnail(item.open(classifier.decoding))
            except DataError as error:
                unusual[position]["gap"] = str(error)
    return fill("watch.html.jinja", **comparison, **facts)
