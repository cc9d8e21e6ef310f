"""Few-shot samples, and held-out images with several labels an image or spread over groups."""

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TypeVar

from kdpl.data.splits import Record

Labeled = TypeVar("Labeled", bound=tuple[str, Hashable])


def are_sets(images: Iterable[tuple[str, Hashable]]) -> bool:
    """Return whether images, as (source, label), have several labels each."""
    return any(isinstance(label, tuple) for _, label in images)


def by_label(images: Iterable[Labeled]) -> Collection[list[Labeled]]:
    """Return the images of each class; classes come in the order of their first image."""
    classes: defaultdict[Hashable, list[Labeled]] = defaultdict(list)
    for image in images:
        classes[image[1]].append(image)
    return classes.values()


def sample(
    records: Sequence[Record], shots: int | None, stream: random.Random, groups: Mapping[str, str]
) -> list[Record]:
    """Draw ``shots`` images a class; None: all.

    Images with several labels are drawn by ``sample_sets``, without groups. Otherwise a class gets
    a second image of a group only if there is no other group, and so on.
    """
    if shots is None:
        return list(records)
    if are_sets(records):
        return sample_sets(records, shots, stream)
    return [
        record
        for items in by_label(records)
        for record in (_spread(items, shots, stream, groups) if len(items) >= shots else items)
    ]


def sample_sets(records: Sequence[Record], shots: int, stream: random.Random) -> list[Record]:
    """Draw images with several labels: for each class ``shots`` with it and as many without it.

    Classes come by label. A class draws only what it lacks after the earlier draws, so no image is
    drawn twice. A class with fewer images takes all of them.
    """
    having: defaultdict[int, dict[int, None]] = defaultdict(dict)
    for image, record in enumerate(records):
        for label in record.labels:
            having[label][image] = None
    drawn: dict[int, None] = {}

    def draw(candidates: Iterable[int], wanted: int) -> None:
        left = [image for image in candidates if image not in drawn]
        drawn.update(dict.fromkeys(stream.sample(left, min(wanted, len(left)))))

    for label in sorted(having):
        images = having[label]
        # first images with the class, then images without it
        positives = sum(image in images for image in drawn)
        if positives < shots:
            draw(images, shots - positives)
        lacking = sum(image not in images for image in drawn)
        if lacking < shots:
            draw((i for i in range(len(records)) if i not in images), shots - lacking)
    return [records[image] for image in drawn]


def hold_out(
    images: Sequence[tuple[str, Hashable]], share: float, groups: Mapping[str, str], least: int
) -> set[str]:
    """Draw a share of each class's groups, as whole groups, see ``kdpl.data.sampling.held_out_of``.

    A class may get none if its groups are needed by other classes. Images with several labels are
    drawn in the same way, starting with the rarest class (Sechidis et al., "On the stratification
    of multi-label data", ECML 2011).
    """
    # collect the classes of each group
    stream = random.Random(0)  # noqa: S311
    classes_of: defaultdict[str, dict[Hashable, None]] = defaultdict(dict)
    counts = Counter[Hashable]()
    for source, label in images:
        # an image of none of the classes counts as one of the class None
        labels = (label or (None,)) if isinstance(label, tuple) else (label,)
        classes_of[groups.get(source, source)].update(dict.fromkeys(labels))
        counts.update(labels)

    # draw groups class by class, the rarest first
    total = Counter(label for classes in classes_of.values() for label in classes)
    staying = Counter({label: n for label, n in total.items() if counts[label] >= least})
    held_out, done = set[str](), set[Hashable]()
    for label in sorted(staying, key=total.__getitem__):
        having = [group for group, classes in classes_of.items() if label in classes]
        wanted = max(1, round(share * len(having))) - len(held_out.intersection(having))
        # first groups without any class that has its share already
        drawn = stream.sample(having, len(having))
        for group in sorted(drawn, key=lambda group: not done.isdisjoint(classes_of[group])):
            classes = classes_of[group]
            # one group of each class stays, and all groups of a class that is too small
            if wanted > 0 and group not in held_out and all(staying[key] > 1 for key in classes):
                held_out.add(group)
                staying.subtract(classes.keys())
                wanted -= 1
        done.add(label)
    return {source for source, _ in images if groups.get(source, source) in held_out}


def _spread(
    items: Sequence[Record], number: int, stream: random.Random, groups: Mapping[str, str]
) -> list[Record]:
    if not any(record.source in groups for record in items):
        return stream.sample(items, number)
    seen, ranked = Counter[str](), list[tuple[int, Record]]()
    for record in stream.sample(items, len(items)):
        group = groups.get(record.source, record.source)
        seen[group] += 1
        ranked.append((seen[group], record))
    # the first image of each group, then the second of each, and so on
    return [record for _, record in sorted(ranked, key=itemgetter(0))[:number]]
