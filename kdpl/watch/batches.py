"""Comparison, without labels, of new images with a classifier's pool: numbers and their page."""

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
from kdpl.doubt.unknown import MIN_HELD_OUT, NAME, REMEDY, Unknown, share_above, usual_rank
from kdpl.errors import DataError
from kdpl.report.accuracy import thumbnail
from kdpl.report.intervals import wilson
from kdpl.report.page import fill
from kdpl.tasks import DecisionRule
from kdpl.watch.image_sample import MAX_IMAGES, ImageSample
from kdpl.watch.two_samples import (
    Comparison,
    above_usual,
    compare,
    distances_to,
    distances_within,
    least_sure,
)

MIN_IMAGES = 20
"""Smallest number of images on either side: below it, a share's interval is 40 points or more."""

MAX_SHOWN = 24
"""Largest number of unusual images that are shown."""

_MAX_LISTED = 10
_BANDS = (0, 0.5, 0.9, 0.95, 0.99, 1)  # of the pool's own distances
_ALARMS = {
    "rejected": "more images are rejected",
    "classes": "classes are predicted at other frequencies",
    "distance": "images are farther from the pool",
    "unknown": "more images look like none of the classes",
}


@dataclass(frozen=True)
class Batch:
    """Images and what a classifier finds in them.

    They have places in the order given, and names; those that it cannot read are listed apart.
    """

    places: list[int]
    names: list[str]
    sample: ImageSample
    unreadable: list[tuple[str, str]]


def read_batch(classifier: Classifier, sources: Sequence[str], option: str) -> Batch:
    """Classify images of files and shards that an option names.

    It is a DataError if too few can be read.
    """
    places, names, predicted, unreadable = [], [], [], []
    predictions = classifier.predictions(
        read_items(sources), partial(Item.open, decoding=classifier.decoding)
    )
    for place, (item, each) in enumerate(predictions):
        if isinstance(each, DataError):
            unreadable.append((printable(item.name), str(each)))
        else:
            places.append(place)
            names.append(printable(item.name))
            predicted.append(each)
    if len(predicted) < MIN_IMAGES:
        first = (
            f", the first of {len(unreadable)} unreadable ones because {unreadable[0][1]}"
            if unreadable
            else ""
        )
        raise DataError(
            f"it takes {MIN_IMAGES} images or more to compare them, and {option} has "
            f"{len(predicted)}: give more{first}"
        )
    return Batch(places, names, ImageSample.of(predicted, classifier.class_names), unreadable)


class Limit(NamedTuple):
    """A score of being none of the classes, and the number of images that it comes from.

    The classifier was not trained on these images.
    """

    score: float
    images: int


def find_limit(
    classifier: Classifier, reference: ImageSample | None
) -> tuple[Limit | None, str | None]:
    """Find the limit that new images are compared with, or why there is none.

    ``reference`` are images like the pool's.

    The pool itself says nothing of it: its images are usual to an encoder that has learnt them.
    """
    unknown = classifier.companions.get(NAME)
    if not isinstance(unknown, Unknown):
        return None, f"this classifier has no scores of that: {REMEDY}"
    if reference is not None:
        scores = unknown_scores(classifier, reference).sort().values
        return Limit(float(scores[usual_rank(len(scores)) - 1]), len(scores)), None
    if unknown.held_out is None:
        # a file of before these were counted lacks their number, too
        remedy = (
            "distil it with some (init --val-share), "
            "or give images like those of the pool by --against"
        )
        return (
            None,
            f"this classifier does not know its limit of 0.5 from validation images: {remedy}",
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
    """Compare as ``compare`` does, and with the limit, if any; the default rule is the pool's."""
    rejected = (
        None if rule is None else np.concatenate([rejected_of(each, rule) for each in (pool, new)])
    )
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
        rule: What rejects an image; None: a largest probability that is smaller than of most of the
            pool.
        false_alarms: Share of batches like the pool that may be said to differ, see ``compare``.
        trained_on: Whether the classifier was trained on the images of the pool.

    Returns:
        What the page shows, of which ``summary`` is what the command prints.
    """
    sample, names = new.sample, classifier.class_names
    drawn = sample.draw(MAX_IMAGES)
    limit, missing = find_limit(classifier, None if trained_on else pool)
    comparison = compare_with_limit(classifier, pool, drawn, rule, limit)
    alarms = [
        question for question, p_value in comparison.questions.items() if p_value <= false_alarms
    ]
    rule = DecisionRule(threshold=least_sure(pool.scores.numpy())) if rule is None else rule
    both = {"pool": pool, "new": sample}
    counts = {
        who: each.labels.bincount(minlength=len(names)).tolist() for who, each in both.items()
    }
    is_rejected = {who: rejected_of(each, rule) for who, each in both.items()}
    rejected = {who: int(each.sum()) for who, each in is_rejected.items()}
    above = 0 if limit is None else int((unknown_scores(classifier, sample) > limit.score).sum())
    rows = [
        {
            "name": name,
            "pool": counts["pool"][number] / len(pool),
            "new": counts["new"][number] / len(sample),
            "interval": wilson(counts["new"][number], len(sample)),
            "changed": "classes" in alarms and comparison.classes[number] <= false_alarms,
        }
        for number, name in enumerate(names)
    ]
    rows.sort(key=lambda row: (-abs(row["new"] - row["pool"]), row["name"]))
    own, far = (
        np.sort(distances_within(pool.features)),
        distances_to(pool.features, sample.features),
    )
    # share of the pool's own distances that are smaller
    ranks = np.searchsorted(own, far) / len(own)
    bands = np.bincount(
        np.searchsorted(_BANDS[1:-1], ranks, side="right"), minlength=len(_BANDS) - 1
    )
    order = np.argsort(-far)[:MAX_SHOWN].tolist()
    summary = {
        "differs": bool(alarms),
        "because": [_ALARMS[question] for question in alarms],
        "images": len(sample),
        "unreadable": len(new.unreadable),
        "rejected": round(rejected["new"] / len(sample), 4),
        "rejected_of_pool": round(rejected["pool"] / len(pool), 4),
        "unknown": None if limit is None else round(above / len(sample), 4),
        "p_values": {
            question: round(p_value, 4) for question, p_value in comparison.questions.items()
        },
        "changed_classes": [row["name"] for row in rows if row["changed"]],
    }
    return {
        "summary": summary,
        "alarms": alarms,
        "false_alarms": false_alarms,
        "threshold": rule.threshold or 0.0,
        "unknown": None
        if limit is None
        else {
            **limit._asdict(),
            "usual": share_above(limit.images),
            "share": above / len(sample),
            "interval": wilson(above, len(sample)),
        },
        "enough": MIN_HELD_OUT,
        "missing": missing,
        "p_values": comparison.questions,
        "sizes": {"pool": len(pool), "compared": len(drawn)},
        "rejected": {
            who: {"share": rejected[who] / len(each), "interval": wilson(rejected[who], len(each))}
            for who, each in both.items()
        },
        "classes": rows,
        "most": max(max(row["pool"], row["interval"][1]) for row in rows),
        "bands": [
            {"low": low, "high": high, "pool": high - low, "new": count / len(sample)}
            for low, high, count in zip(_BANDS[:-1], _BANDS[1:], bands.tolist(), strict=True)
        ],
        "medians": {"pool": float(np.median(own)), "new": float(np.median(far))},
        "unusual": [
            {
                "place": new.places[i],
                "name": new.names[i],
                "class": names[sample.labels[i]],
                "probability": sample.scores[i].item(),
                "rejected": bool(is_rejected["new"][i]),
                "rank": float(ranks[i]),
            }
            for i in order
        ],
        "unreadable": new.unreadable[:_MAX_LISTED],
    }


def render(
    comparison: dict[str, Any], classifier: Classifier, sources: Sequence[str], **about: str | None
) -> str:
    """Return a comparison's HTML page, with thumbnails of unusual images, which are read again."""
    wanted = {each["place"]: each for each in comparison["unusual"]}
    for place, item in enumerate(read_items(sources)):
        if place in wanted:
            try:
                wanted[place] |= thumbnail(item.open(classifier.decoding))
            except DataError as error:
                wanted[place]["gap"] = str(error)
    return fill("watch.html.jinja", **comparison, **about)
