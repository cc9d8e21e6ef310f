"""Leaving images out of a dataset: the images of a user's list, and others."""

import csv
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from kdpl.data.names import Names, select
from kdpl.data.splits import Splits, labels_of
from kdpl.data.storage import read_list
from kdpl.errors import DataError


def without_listed(splits: Splits, skip_list: str) -> Splits:
    """Leave out the images of a skip list; a DataError if none is in the dataset."""
    listed = read_skip_list(Path(skip_list).expanduser())
    named = listed.intersection(splits.sources)
    if listed and not named:
        example = next(iter(splits.sources), "photos/1.jpg")
        raise DataError(
            f"skip list {skip_list} names no image of {splits.origin}: write paths as {example}"
        )
    return leave_out(splits, named)


def read_skip_list(file: Path) -> frozenset[str]:
    """Read paths from the lines of a ``.txt`` or the first column of a ``.csv``, or a DataError."""
    if not file.is_file():
        raise DataError(f"skip list {file} does not exist: check reading.skip_list")
    if file.suffix == ".txt":
        return frozenset(read_list(file))
    if file.suffix != ".csv":
        raise DataError(f"skip list {file} is of an unknown kind: give a .txt or .csv file")
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        return frozenset(row[0] for row in csv.reader(lines) if row)


def leave_out(splits: Splits, sources: Collection[str], left: str = "that can be used") -> Splits:
    """Leave images out of a dataset; DataError if a class has none ``left`` to train on."""
    gone = frozenset(sources)
    if not gone:
        return splits
    # filter the labelled parts, and check that each class can still be trained on
    train, val, test = (
        tuple(record for record in records if record.source not in gone)
        for records in (splits.train, splits.val, splits.test)
    )
    trained = {label for record in train for label in labels_of(record)}
    before = {label for record in splits.train for label in labels_of(record)}
    for label in sorted(before - trained):
        raise DataError(
            f"class {splits.class_names[label]!r} of {splits.origin} has no training image {left}: "
            "add some, or remove the class"
        )
    unlabeled = splits.unlabeled
    if unlabeled is not None:
        unlabeled = select(Names.of(unlabeled), (source not in gone for source in unlabeled))
    return replace(splits, train=train, val=val, test=test, unlabeled=unlabeled)
