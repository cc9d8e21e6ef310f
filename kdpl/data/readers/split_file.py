"""A split file: ``{"train": [[path, label, class name], …], "val": […], "test": […]}``, all below one folder."""

import json
import os
from typing import Any

from kdpl.data.decoding import open_image
from kdpl.data.inside import stays_inside
from kdpl.data.readers.benchmark import Location
from kdpl.data.splits import Record, Splits


def read_split_file(location: Location) -> Splits:
    """Read a dataset that a split file describes: labels, class names and the order of images are the file's.

    The images themselves are not looked for, since that takes minutes on a network disk.

    Raises:
        DataError: If the file or the image folder is missing, or the file is damaged: not JSON, without one of the
            lists, with paths that leave the image folder, labels with gaps, or two names for a label.
    """
    lists = _read_lists(location)
    location.require_folder(location.images)
    folder = os.path.normpath(location.images)
    names: dict[int, str] = {}
    records: dict[str, tuple[Record, ...]] = {}
    for split, entries in lists.items():
        for number, entry in enumerate(entries):
            fault = _fault(entry) or _second_name(names, entry)
            if fault:
                raise location.damaged(location.index, f"has a faulty entry {number} in {split} ({fault})")
            names[entry[1]] = entry[2]
        records[split] = tuple(Record(f"{folder}{os.sep}{path}", label) for path, label, _ in entries)
    for label in range(len(names)):
        if label not in names:
            raise location.damaged(
                location.index, f"has label {max(names)} but no label {label}, where labels count from 0 without gaps"
            )
    return Splits(
        origin=location.origin,
        class_names=tuple(names[label] for label in range(len(names))),
        train=records["train"],
        val=records["val"],
        test=records["test"],
        unlabeled=None,
        open_image=open_image,
    )


def _read_lists(location: Location) -> dict[str, list[Any]]:
    path = location.index
    try:
        content = json.loads(location.read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise location.damaged(path, "is not JSON") from error
    if not isinstance(content, dict):
        raise location.damaged(path, "holds no object with the lists train, val and test")
    lists = {}
    for split in ("train", "val", "test"):
        if not isinstance(content.get(split), list):
            raise location.damaged(path, f"lacks the list {split}")
        if not content[split] and split != "val":
            raise location.damaged(path, f"has no images in {split}")
        lists[split] = content[split]
    return lists


def _fault(entry: object) -> str | None:
    if not isinstance(entry, list) or len(entry) != 3:
        return f"{entry!r:.80} is not [path, label, class name]"
    path, label, name = entry
    if not isinstance(path, str) or not stays_inside(path):
        return f"path {path!r:.80} does not stay in the image folder"
    if type(label) is not int or label < 0:
        return f"label {label!r:.80} is not 0, 1, 2, …"
    if not isinstance(name, str) or not name.strip():
        return f"class name {name!r:.80} is not a name"
    return None


def _second_name(names: dict[int, str], entry: list[Any]) -> str | None:
    _, label, name = entry
    known = names.get(label, name)
    return None if known == name else f"label {label} is called {name!r} here and {known!r} before"
