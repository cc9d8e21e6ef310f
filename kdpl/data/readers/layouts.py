"""Datasets of the benchmark: those that lists describe, ImageNet and its variants, and the reader of all.

Within a class of ImageNet images come in the sorted order of their names. The field takes them in the order in which
the file system lists them, which differs from disk to disk, so that no two machines share a k-shot sample of it.
"""

import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, NonNegativeInt, ValidationError

from kdpl.data.decoding import open_image
from kdpl.data.readers.benchmark import BENCHMARKS, Layout, Location
from kdpl.data.splits import Reader, Record, Splits
from kdpl.data.storage import is_image, stays_inside


class BenchmarkSet(Reader):
    """A dataset of the benchmark: a key of ``BENCHMARKS``, below the ``root`` of all datasets."""

    own = False

    def __init__(self, name: str, root: str) -> None:
        self.location = Location(BENCHMARKS[name], Path(root).expanduser())

    def read(self) -> Splits:
        """Read it; a DataError names the path that is missing or damaged and the command that gets the data."""
        self.location.require_folder(self.location.folder)
        return _LAYOUTS[self.location.benchmark.layout](self.location)


def _inside(path: str) -> str:
    if not stays_inside(path):
        raise ValueError("the path does not stay in the image folder")
    return path


_Entry = tuple[Annotated[str, AfterValidator(_inside)], NonNegativeInt, Annotated[str, Field(pattern=r"\S")]]


class _SplitFile(BaseModel):
    train: list[_Entry] = Field(min_length=1)
    val: list[_Entry]
    test: list[_Entry] = Field(min_length=1)


def _read_split_file(location: Location) -> Splits:
    """``{"train": [[path, label, class name], …], "val": […], "test": […]}``: labels, names and order are the file's.

    The images themselves are not looked for, which takes minutes on a network disk.
    """
    try:
        content = _SplitFile.model_validate_json(location.read_text(location.index), strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "the file"
        raise location.damaged(location.index, f"is invalid ({where}: {fault['msg']:.200})") from error
    location.require_folder(location.images)
    folder = os.path.normpath(location.images)
    names: dict[int, str] = {}
    records: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
    for split, listed in records.items():
        for path, label, name in getattr(content, split):
            if names.setdefault(label, name) != name:
                raise location.damaged(location.index, f"calls label {label} {names[label]!r} and {name!r}")
            listed.append(Record(f"{folder}{os.sep}{path}", label))
    if len(names) <= max(names):
        raise location.damaged(location.index, f"has label {max(names)} but only {len(names)} labels, from 0 on")
    return _splits(location, [names[label] for label in range(len(names))], **records)


def _read_aircraft(location: Location) -> Splits:
    """``variants.txt``, one class name a line by label, and ``images_variant_{train,val,test}.txt``.

    The lines of the latter are ``<image id> <class name>``; the image is ``<image id>.jpg``. Their order is kept.
    """
    names = [line.strip() for line in location.read_text(location.index).splitlines() if line.strip()]
    label_of: dict[str, int] = {}
    for label, name in enumerate(names):
        if label_of.setdefault(name, label) != label:
            raise location.damaged(location.index, f"lists class {name!r} twice")
    location.require_folder(location.images)
    records: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
    for split, listed in records.items():
        path = location.folder / f"images_variant_{split}.txt"
        for number, line in enumerate(location.read_text(path).splitlines(), start=1):
            image, _, name = line.strip().partition(" ")
            if not image:
                continue
            if name.strip() not in label_of:
                raise location.damaged(path, f"names {name.strip()!r} in line {number}, which is not a class")
            if not stays_inside(image):
                raise location.damaged(path, f"has an image in line {number} that does not stay in the image folder")
            listed.append(Record(f"{location.images}{os.sep}{image}.jpg", label_of[name.strip()]))
        if not listed and split != "val":
            raise location.damaged(path, "lists no images")
    return _splits(location, names, **records)


def _read_imagenet(location: Location) -> Splits:
    """``images/train/<wnid>/`` and ``images/val/<wnid>/``: a label is the rank of the folder's name.

    ImageNet's validation images are the test split, since their true test labels are not public; there is no
    validation split.
    """
    train, val = location.images / "train", location.images / "val"
    folders = _class_folders(location, train)
    differing = sorted(set(folders) ^ set(_class_folders(location, val)))
    if differing:
        raise location.damaged(location.images, f"has class {differing[0]} in only one of train and val")
    names = _names_of(location, folders)
    return _splits(location, names, _records(location, train, folders), [], _records(location, val, folders))


def _read_class_folders(location: Location) -> Splits:
    """Test images in folders ``<wnid>/``: a label is the rank of the folder's name among those that there are."""
    folders = _class_folders(location, location.images)
    return _splits(location, _names_of(location, folders), [], [], _records(location, location.images, folders))


def _read_numbered_folders(location: Location) -> Splits:
    """Test images in folders ``0/``, ``1/``, …: the folder's number is the label among all of ImageNet's classes."""
    names = [name for _, name in sorted(_names_by_wnid(location).items())]
    folders = _class_folders(location, location.images)
    for folder in folders:
        if not (folder.isascii() and folder.isdecimal()) or int(folder) >= len(names):
            raise location.damaged(location.images / folder, f"is not one of the folders 0 to {len(names) - 1}")
    folders.sort(key=int)
    records = _records(location, location.images, folders)
    return _splits(location, names, [], [], [Record(source, int(folders[label])) for source, label in records])


def _splits(location: Location, names: list[str], train: list[Record], val: list[Record], test: list[Record]) -> Splits:
    lists, test_only = (tuple(train), tuple(val), tuple(test)), location.benchmark.test_only
    return Splits(location.origin, tuple(names), *lists, None, open_image, test_only)


def _class_folders(location: Location, top: Path) -> list[str]:
    location.require_folder(top)
    with os.scandir(top) as entries:
        folders = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    if not folders:
        raise location.damaged(top, "has no class folders")
    return folders


def _records(location: Location, top: Path, folders: list[str]) -> list[Record]:
    """The images of class folders, with the rank of their folder as label."""
    records = []
    for label, folder in enumerate(folders):
        path = f"{top}{os.sep}{folder}"
        names = sorted(name for name in os.listdir(path) if is_image(name))  # noqa: PTH208 - a Path for each of a million files is slow
        if not names:
            raise location.damaged(Path(path), "has no images")
        records += [Record(f"{path}{os.sep}{name}", label) for name in names]
    return records


def _names_of(location: Location, folders: list[str]) -> list[str]:
    names = _names_by_wnid(location)
    for folder in folders:
        if folder not in names:
            raise location.damaged(location.images, f"has a class folder {folder} that no class name belongs to")
    return [names[folder] for folder in folders]


def _names_by_wnid(location: Location) -> dict[str, str]:
    """Class names by WordNet id; several ids may share a name, as in ImageNet two of them do."""
    if location.index.exists():
        text = location.read_text(location.index)
    else:  # the names that open_clip uses
        text = files("kdpl.data.readers").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    names: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        wnid, _, name = line.strip().partition(" ")
        if not wnid:
            continue
        if not name.strip():
            raise location.damaged(location.index, f"is not '<wnid> <class name>' in line {number}")
        if wnid in names:
            raise location.damaged(location.index, f"has {wnid} twice, again in line {number}")
        names[wnid] = name.strip()
    return names


_LAYOUTS: dict[Layout, Callable[[Location], Splits]] = {
    "split_file": _read_split_file,
    "aircraft": _read_aircraft,
    "imagenet": _read_imagenet,
    "class_folders": _read_class_folders,
    "numbered_folders": _read_numbered_folders,
}
