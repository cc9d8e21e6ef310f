"""Random streams and sampling: k-shot samples, base classes, shares, and held-out images."""

import random
from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeVar, get_args

import numpy as np

from kdpl.data import stratified
from kdpl.data.names import Indices, Names, places, unlisted
from kdpl.data.splits import Record, Splits
from kdpl.data.stratified import are_sets, by_label
from kdpl.errors import DataError

T = TypeVar("T")

Purpose = Literal[
    "augmentation", "order", "share", "labels", "sample", "unseen", "groups", "stored view"
]

Groups = Mapping[str, str]
"""Groups of images by source, such as their cameras."""

NO_GROUPS: Groups = {}
"""No groups: each image stands by itself."""

# the position of a purpose is part of its stream
_PURPOSES = get_args(Purpose)


def generator(
    seed: int, purpose: Purpose, *, epoch: int = 0, index: int = 0
) -> np.random.Generator:
    """Return the random stream of a seed, a purpose, an epoch and an image.

    Philox is counter-based (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011):
    a stream's start is computed from its key and counter. The draw for (seed, image, epoch) is
    therefore the same for any number of workers and processes, any order of calls, and after a
    resume. Streams do not overlap: each has 2^64 blocks.
    """
    key = np.array([seed, _PURPOSES.index(purpose)], dtype=np.uint64)
    counter = np.array([0, index, epoch, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def few_shot(
    train: Sequence[Record],
    val: Sequence[Record],
    shots: int | None,
    val_shots: int | None,
    seed: int,
    groups: Groups = NO_GROUPS,
) -> tuple[list[Record], list[Record]]:
    """Draw the k-shot sample that the field uses for a seed.

    One stream of Python's ``random`` serves the training list and then the validation list. The
    classes come in the order of their first image in the list, and a class with fewer images than
    requested is taken whole, without a draw. Images of groups or with several labels are drawn by
    ``kdpl.data.stratified``.

    Args:
        train: The whole training list.
        val: The whole validation list.
        shots: Training images a class; None: the list as it is.
        val_shots: Validation images a class, never more than ``shots``; None: the list as it is.
        seed: Seed of the stream.
        groups: Groups of images by source; unused for images with several labels.
    """
    # the same stream as random.seed(seed), without touching the global stream
    stream = random.Random(seed)  # noqa: S311
    if val_shots is not None and shots is not None:
        val_shots = min(shots, val_shots)
    drawn = stratified.sample(train, shots, stream, groups)
    return drawn, stratified.sample(val, val_shots, stream, groups)


def balanced(labels: Indices, total: int, rng: np.random.Generator) -> Indices:
    """Draw ``total`` of N images with these labels so that each class comes equally often.

    The numbers of draws differ by at most one between classes, and between images of a class.
    Returns the draws in random order, int64 [total]: image i drawn for the k-th time, counted from
    0, is i + k·N.
    """
    classes = rng.permutation(np.unique(labels))
    drawn = []
    for rank, label in enumerate(classes):
        images = rng.permutation(np.flatnonzero(labels == label))
        # the remainder goes to other classes in each epoch
        draws = np.arange(total // len(classes) + (rank < total % len(classes)))
        drawn.append(images[draws % len(images)] + draws // len(images) * len(labels))
    return rng.permutation(np.concatenate(drawn))


def with_labels(records: Iterable[Record], labels: Container[int]) -> list[Record]:
    """Return the records whose label is among ``labels``, in their order.

    Images with several labels are all kept, with only these labels.
    """
    return [
        Record(record.source, tuple(label for label in record.label if label in labels))
        if isinstance(record.label, tuple)
        else record
        for record in records
        if isinstance(record.label, tuple) or record.label in labels
    ]


def share_of(num_images: int, share: float, seed: int) -> Indices:
    """Draw a share of unlabelled images, above 0 and at most 1; return their sorted positions.

    At least one image is drawn, and a seed's smaller share is part of its larger one.
    """
    order = generator(seed, "share").permutation(num_images)
    return np.sort(order[: max(1, round(share * num_images))])


def held_out_of(
    images: Iterable[tuple[str, Hashable]], share: float, groups: Groups = NO_GROUPS, least: int = 2
) -> set[str]:
    """Draw the images of each class that become test images, from sources and labels.

    The draw is the same every time, a share above 0 and below 1; at least one image is drawn, and
    at least one stays. A class with fewer images than ``least`` is left alone. Images of groups or
    with several labels are drawn by ``kdpl.data.stratified``.
    """
    images = list(images)
    if groups or are_sets(images):
        return stratified.hold_out(images, share, groups, least)
    chosen: set[str] = set()
    for items in by_label(images):
        if len(items) < least:
            continue
        number = min(len(items) - 1, max(1, round(share * len(items))))
        # a fixed seed: all runs are measured on the same images
        chosen.update(source for source, _ in random.Random(0).sample(items, number))  # noqa: S311
    return chosen


def hold_out(splits: Splits, share: float) -> Splits:
    """Hold out a share of each class's training images as test images if a dataset has none."""
    if splits.test or not splits.train:
        return splits
    chosen = held_out_of(splits.train, share, splits.groups)
    return replace(
        splits,
        train=tuple(record for record in splits.train if record.source not in chosen),
        test=tuple(record for record in splits.train if record.source in chosen),
        held_out=True,
    )


def measured_again(
    splits: Splits, unlabeled: Iterable[str], keys: Callable[[Names], Iterable[str | None]]
) -> Iterator[tuple[str, str, str, str]]:
    """Find images that are test or validation images of another part, too, by keys of names.

    Yields name and part of an image, and of the first test or validation image of its key. A key of
    None is not compared.
    """
    labeled = {"test": splits.test, "val": splits.val, "train": splits.train}
    parts = [(part, (record.source for record in group)) for part, group in labeled.items()]
    first: dict[str, tuple[str, str]] = {}
    for part, sources in [*parts, ("unlabelled", unlabeled)]:
        # other images may be many: they are not stored, and skipped if there is nothing to find
        is_measured = part in ("test", "val")
        names = Names.of(sources if is_measured or first else ())
        for name, key in zip(names, keys(names), strict=True):
            if key is not None:
                here = name, part
                there = first.setdefault(key, here) if is_measured else first.get(key, here)
                if there[1] != part:
                    yield *here, *there


def require_apart(splits: Splits) -> None:
    """Raise a DataError that names both if one file is in two of train, val and test."""
    again = measured_again(splits, (), places)
    twice = [f"{other} ({of}) and {name} ({part})" for name, part, other, of in again]
    if twice:
        raise DataError(
            f"{splits.origin} has {len(twice)} files in two splits at once, such as {twice[0]}: "
            "keep each in one split, or list its other names in a file and set reading.skip_list "
            "to it"
        )


def keep_apart(splits: Splits) -> tuple[Splits, int]:
    """Leave out, and count, unlabelled images that are test or validation images by any name."""
    measured = [record.source for record in (*splits.val, *splits.test)]
    if not splits.unlabeled or not measured:
        return splits, 0
    unlabeled = unlisted(Names.of(splits.unlabeled), measured)
    return replace(splits, unlabeled=unlabeled), len(splits.unlabeled) - len(unlabeled)


def require_shots(records: Sequence[Record], class_names: Sequence[str], shots: int) -> None:
    """Raise a DataError if a class has fewer than ``shots`` labelled images.

    With several labels an image, also if fewer than ``shots`` images lack a class.
    """
    counts = Counter(label for record in records for label in record.labels)
    sets = are_sets(records)
    for label, name in enumerate(class_names):
        number = min(counts[label], len(records) - counts[label] if sets else shots)
        if number < shots:
            what = "has" if counts[label] < shots else "is lacked by"
            raise DataError(
                f"class {name!r} {what} {number} training images where shots asks for {shots}: "
                "lower shots, or set allow_fewer_shots: true to take what there is"
            )


def spread(items: Sequence[T], count: int) -> list[T]:
    """Choose at most ``count`` items, evenly spread."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]
