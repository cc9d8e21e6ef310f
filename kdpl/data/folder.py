"""A dataset of one's own: ``root/train/<class>/…``, optional ``root/val`` and ``root/test``, any unlabelled folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from kdpl.data.class_mapping import read_class_mapping
from kdpl.data.decoding import open_image
from kdpl.data.splits import Record, Splits
from kdpl.errors import DataError

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def read_folder(root: str, unlabeled: str | None = None, class_names: str | None = None) -> Splits:
    """Read a dataset of folders.

    The classes are the sorted union of the folders of all splits; within a class images come in the sorted order of
    their paths. Hidden files and folders are skipped.

    Args:
        root: Folder that holds ``train`` and, if there are any, ``val`` and ``test``.
        unlabeled: Folder of unlabelled images, searched recursively; None: the training images serve.
        class_names: File that maps folder to class name; None: the folders' names serve.

    Returns:
        The dataset; sources are paths that begin with ``root`` or ``unlabeled`` as given.

    Raises:
        DataError: If a folder is missing or holds no images, or the class names file does not fit.
    """
    top = Path(root).expanduser()
    if not top.is_dir():
        raise DataError(f"dataset folder {top} does not exist: set root to the folder that holds train/<class>/.")
    if not (top / "train").is_dir():
        raise DataError(f"dataset folder {top} has no folder train: put the labelled images into {top}/train/<class>/.")
    images = {split: _images_by_class(top / split) for split in ("train", "val", "test")}
    folders = sorted(set().union(*images.values()))
    names = read_class_mapping(Path(class_names).expanduser(), folders) if class_names else {}
    records = {
        split: tuple(Record(path, label) for label, folder in enumerate(folders) for path in by_class.get(folder, ()))
        for split, by_class in images.items()
    }
    return Splits(
        origin=f"dataset folder {top}",
        class_names=tuple(names.get(folder, folder) for folder in folders),
        train=records["train"],
        val=records["val"],
        test=records["test"],
        unlabeled=unlabeled_images(Path(unlabeled).expanduser()) if unlabeled else None,
        open_image=open_image,
    )


def find_images(folder: Path) -> list[str]:
    """Paths of all images below a folder, sorted, hidden ones left out.

    Files count as images by their extension, in any case. Links are followed; a folder reached twice is read once.
    """
    return list(_walk(str(folder), set()))


def _walk(folder: str, seen: set[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in seen:  # a link back up would lead round in circles
        return
    seen.add(real)
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        if entry.is_dir():
            yield from _walk(entry.path, seen)
        elif Path(entry.name).suffix.lower() in EXTENSIONS:
            yield entry.path


def _images_by_class(split: Path) -> dict[str, list[str]]:
    if not split.is_dir():
        return {}
    folders = sorted(path for path in split.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DataError(f"folder {split} has no class folders: put the images into {split}/<class>/.")
    images = {folder.name: find_images(folder) for folder in folders}
    for name, paths in images.items():
        if not paths:
            raise DataError(f"class folder {split / name} has no images: add some, or remove the folder.")
    return images


def unlabeled_images(folder: Path) -> tuple[str, ...]:
    """Paths of all images below a folder of unlabelled ones.

    Raises:
        DataError: There is no such folder, or there are none.
    """
    if not folder.is_dir():
        raise DataError(f"unlabelled folder {folder} does not exist: set unlabeled to a folder of images.")
    paths = find_images(folder)
    if not paths:
        raise DataError(f"unlabelled folder {folder} has no images: expected some of {', '.join(sorted(EXTENSIONS))}.")
    return tuple(paths)
