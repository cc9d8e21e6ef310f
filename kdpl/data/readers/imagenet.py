"""ImageNet and its variants: one folder of images a class, named by WordNet id or by label.

Within a class images come in the sorted order of their names. The field takes them in the order in which the file
system lists them, which differs from disk to disk, so that on ImageNet alone no two machines share a k-shot sample.
"""

import os
from importlib.resources import files
from pathlib import Path

from kdpl.data.decoding import open_image
from kdpl.data.readers.benchmark import Location
from kdpl.data.splits import Record, Splits
from kdpl.data.storage import is_image


def read_imagenet(location: Location) -> Splits:
    """``images/train/<wnid>/`` and ``images/val/<wnid>/``: a label is the rank of the folder's name.

    ImageNet's validation images are the test split, since their true test labels are not public; there is no
    validation split.

    Raises:
        DataError: A folder is missing or empty, the two have other classes, or a folder has no class name.
    """
    train, val = location.images / "train", location.images / "val"
    folders = _class_folders(location, train)
    differing = sorted(set(folders) ^ set(_class_folders(location, val)))
    if differing:
        raise location.damaged(location.images, f"has class {differing[0]} in only one of train and val")
    labels = {folder: label for label, folder in enumerate(folders)}
    names = _names_of(location, folders)
    train_records, test_records = (_records(location, top, labels) for top in (train, val))
    return Splits(location.origin, names, train_records, (), test_records, None, open_image)


def read_class_folders(location: Location) -> Splits:
    """Test images in folders ``<wnid>/``: a label is the rank of the folder's name among those that there are.

    Raises:
        DataError: A folder is missing or empty, or has no class name.
    """
    folders = _class_folders(location, location.images)
    labels = {folder: label for label, folder in enumerate(folders)}
    return _test_only(location, _names_of(location, folders), labels)


def read_numbered_folders(location: Location) -> Splits:
    """Test images in folders ``0/``, ``1/``, …: the folder's number is the label among all of ImageNet's classes.

    Raises:
        DataError: A folder is missing or empty, or is not the number of a class.
    """
    folders = _class_folders(location, location.images)
    names = _names_by_wnid(location)
    ordered = tuple(names[wnid] for wnid in sorted(names))
    for folder in folders:
        if not (folder.isascii() and folder.isdecimal()) or int(folder) >= len(ordered):
            raise location.damaged(location.images / folder, f"is not one of the folders 0 to {len(ordered) - 1}")
    return _test_only(location, ordered, {folder: int(folder) for folder in sorted(folders, key=int)})


def _test_only(location: Location, class_names: tuple[str, ...], labels: dict[str, int]) -> Splits:
    records = _records(location, location.images, labels)
    return Splits(location.origin, class_names, (), (), records, None, open_image, test_only=True)


def _class_folders(location: Location, top: Path) -> list[str]:
    location.require_folder(top)
    with os.scandir(top) as entries:
        folders = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    if not folders:
        raise location.damaged(top, "has no class folders")
    return folders


def _records(location: Location, top: Path, labels: dict[str, int]) -> tuple[Record, ...]:
    records = []
    for folder, label in labels.items():
        path = f"{top}{os.sep}{folder}"
        names = sorted(name for name in os.listdir(path) if is_image(name))  # noqa: PTH208 - a Path for each of a million files is slow
        if not names:
            raise location.damaged(Path(path), "has no images")
        records += [Record(f"{path}{os.sep}{name}", label) for name in names]
    return tuple(records)


def _names_of(location: Location, folders: list[str]) -> tuple[str, ...]:
    names = _names_by_wnid(location)
    for folder in folders:
        if folder not in names:
            raise location.damaged(location.images, f"has a class folder {folder} that no class name belongs to")
    return tuple(names[folder] for folder in folders)


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
