"""FGVC Aircraft's own lists (Maji et al., "Fine-Grained Visual Classification of Aircraft", 2013)."""

import os

from kdpl.data.decoding import open_image
from kdpl.data.inside import stays_inside
from kdpl.data.readers.benchmark import Location
from kdpl.data.splits import Record, Splits


def read_aircraft(location: Location) -> Splits:
    """Read ``variants.txt``, one class name a line, by label, and ``images_variant_{train,val,test}.txt``.

    The lines of the latter are ``<image id> <class name>``; the image is ``<image id>.jpg``. Their order is kept.

    Raises:
        DataError: If a file or the image folder is missing, or a line is not of that form or names no class.
    """
    names = [line.strip() for line in location.read_text(location.index).splitlines() if line.strip()]
    label_of = {name: label for label, name in enumerate(names)}
    if len(label_of) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise location.damaged(location.index, f"lists class {twice!r} twice")
    location.require_folder(location.images)
    records = {split: _read_list(location, split, label_of) for split in ("train", "val", "test")}
    return Splits(
        origin=location.origin,
        class_names=tuple(names),
        train=records["train"],
        val=records["val"],
        test=records["test"],
        unlabeled=None,
        open_image=open_image,
    )


def _read_list(location: Location, split: str, label_of: dict[str, int]) -> tuple[Record, ...]:
    path = location.folder / f"images_variant_{split}.txt"
    records = []
    for number, line in enumerate(location.read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        image, _, name = line.strip().partition(" ")
        name = name.strip()
        if name not in label_of:
            raise location.damaged(
                path, f"names {name!r} in line {number}, which is no class of {location.benchmark.index}"
            )
        if not stays_inside(image):
            raise location.damaged(path, f"has an image in line {number} that does not stay in the image folder")
        records.append(Record(f"{location.images}{os.sep}{image}.jpg", label_of[name]))
    if not records and split != "val":
        raise location.damaged(path, "lists no images")
    return tuple(records)
