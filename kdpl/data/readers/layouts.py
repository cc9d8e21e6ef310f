"""Datasets of the benchmark: those that lists describe, and the reader of all."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdpl.data.decoding import open_image
from kdpl.data.readers.benchmark import BENCHMARKS, Layout, Location
from kdpl.data.readers.imagenet import read_class_folders, read_imagenet, read_numbered_folders
from kdpl.data.splits import Reader, Record, Splits
from kdpl.data.storage import stays_inside


class BenchmarkSet(Reader):
    """A dataset of the benchmark.

    Args:
        name: A key of ``BENCHMARKS``.
        root: The folder of all datasets, which holds the dataset's own.
    """

    own = False

    def __init__(self, name: str, root: str) -> None:
        self.location = Location(BENCHMARKS[name], Path(root).expanduser())

    def read(self) -> Splits:
        """Read it; a DataError names the path that is missing or damaged and the command that gets the data."""
        self.location.require_folder(self.location.folder)
        return _LAYOUTS[self.location.benchmark.layout](self.location)


def read_split_file(location: Location) -> Splits:
    """``{"train": [[path, label, class name], …], "val": […], "test": […]}``: labels, names and order are the file's.

    The images themselves are not looked for, which takes minutes on a network disk.

    Raises:
        DataError: The file or the image folder is missing, or the file is damaged: not JSON, without one of the lists,
            with paths that leave the image folder, labels with gaps, or two names for a label.
    """
    lists = _read_lists(location)
    location.require_folder(location.images)
    folder = os.path.normpath(location.images)
    names: dict[int, str] = {}
    records: dict[str, tuple[Record, ...]] = {}
    for split, entries in lists.items():
        for number, entry in enumerate(entries):
            fault = _fault(entry, names)
            if fault:
                raise location.damaged(location.index, f"has an invalid entry {number} in {split} ({fault})")
            names[entry[1]] = entry[2]
        records[split] = tuple(Record(f"{folder}{os.sep}{path}", label) for path, label, _ in entries)
    gap = next((label for label in range(len(names)) if label not in names), None)
    if gap is not None:
        raise location.damaged(location.index, f"has label {max(names)} but no label {gap}, labels count from 0")
    class_names = tuple(names[label] for label in range(len(names)))
    return _splits(location, class_names, records)


def read_aircraft(location: Location) -> Splits:
    """``variants.txt``, one class name a line by label, and ``images_variant_{train,val,test}.txt``.

    The lines of the latter are ``<image id> <class name>``; the image is ``<image id>.jpg``. Their order is kept.

    Raises:
        DataError: A file or the image folder is missing, or a line is not of that form or names no class.
    """
    names = [line.strip() for line in location.read_text(location.index).splitlines() if line.strip()]
    label_of = {name: label for label, name in enumerate(names)}
    if len(label_of) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise location.damaged(location.index, f"lists class {twice!r} twice")
    location.require_folder(location.images)
    records = {split: _read_aircraft_list(location, split, label_of) for split in ("train", "val", "test")}
    return _splits(location, tuple(names), records)


def _splits(location: Location, names: tuple[str, ...], records: dict[str, tuple[Record, ...]]) -> Splits:
    train, val, test = (records[split] for split in ("train", "val", "test"))
    return Splits(location.origin, names, train, val, test, None, open_image)


def _read_lists(location: Location) -> dict[str, list[Any]]:
    path = location.index
    try:
        content = json.loads(location.read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise location.damaged(path, "is not JSON") from error
    lists = {}
    for split in ("train", "val", "test"):
        entries = content.get(split) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise location.damaged(path, f"lacks the list {split}")
        if not entries and split != "val":
            raise location.damaged(path, f"has no images in {split}")
        lists[split] = entries
    return lists


def _fault(entry: object, names: dict[int, str]) -> str | None:
    if not isinstance(entry, list) or len(entry) != 3:
        return f"{entry!r:.80} is not [path, label, class name]"
    path, label, name = entry
    if not isinstance(path, str) or not stays_inside(path):
        return f"path {path!r:.80} does not stay in the image folder"
    if type(label) is not int or label < 0:
        return f"label {label!r:.80} is not 0, 1, 2, …"
    if not isinstance(name, str) or not name.strip():
        return f"class name {name!r:.80} is not a name"
    known = names.get(label, name)
    return None if known == name else f"label {label} is called {name!r} here and {known!r} before"


def _read_aircraft_list(location: Location, split: str, label_of: dict[str, int]) -> tuple[Record, ...]:
    path = location.folder / f"images_variant_{split}.txt"
    records = []
    for number, line in enumerate(location.read_text(path).splitlines(), start=1):
        image, _, name = line.strip().partition(" ")
        if not image:
            continue
        if name.strip() not in label_of:
            raise location.damaged(path, f"names {name.strip()!r} in line {number}, which is not a class")
        if not stays_inside(image):
            raise location.damaged(path, f"has an image in line {number} that does not stay in the image folder")
        records.append(Record(f"{location.images}{os.sep}{image}.jpg", label_of[name.strip()]))
    if not records and split != "val":
        raise location.damaged(path, "lists no images")
    return tuple(records)


_LAYOUTS: dict[Layout, Callable[[Location], Splits]] = {
    "split_file": read_split_file,
    "aircraft": read_aircraft,
    "imagenet": read_imagenet,
    "class_folders": read_class_folders,
    "numbered_folders": read_numbered_folders,
}
