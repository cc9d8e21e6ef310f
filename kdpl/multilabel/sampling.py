"""Few-shot samples of images that have several labels each."""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

from kdpl.data.splits import Record, labels_of


def sample_sets(records: Sequence[Record], shots: int, stream: random.Random) -> list[Record]:
    """Draw images with several labels: of each class ``shots`` that have it, as many that lack it.

    The classes come by label, and each draws only what the images drawn before leave to be wanted,
    so that no image is drawn twice. A class of fewer images gives all that it has.
    """
    having = _images_of_classes(records)
    drawn: dict[int, None] = {}

    def draw(candidates: Iterable[int], wanted: int) -> None:
        left = [image for image in candidates if image not in drawn]
        drawn.update(dict.fromkeys(stream.sample(left, min(wanted, len(left)))))

    for images in having.values():
        known = sum(image in images for image in drawn)
        if known < shots:
            draw(images, shots - known)
        lacking = sum(image not in images for image in drawn)
        if lacking < shots:
            draw((i for i in range(len(records)) if i not in images), shots - lacking)
    return [records[image] for image in drawn]


def _images_of_classes(records: Sequence[Record]) -> dict[int, dict[int, None]]:
    """The positions of the images that have a class, by label, rising."""
    having: defaultdict[int, dict[int, None]] = defaultdict(dict)
    for image, record in enumerate(records):
        for label in labels_of(record):
            having[label][image] = None
    return dict(sorted(having.items()))
