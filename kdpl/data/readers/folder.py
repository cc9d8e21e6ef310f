"""Dataset in folders ``train/<class>/…``, optional ``val`` and ``test``, and unlabelled images."""

import re
from dataclasses import dataclass
from pathlib import Path

from kdpl.data.class_mapping import name_classes, read_class_mapping
from kdpl.data.paths import find_images
from kdpl.data.sources import OwnImages, find_unlabeled
from kdpl.data.splits import Record, Splits
from kdpl.errors import DataError
from kdpl.runtime.class_names import composed

# British or American, as in unlabelled_images
_UNLABELED = re.compile(r"unlabell?ed([ _-]?(data|images|photos|pictures))?", re.IGNORECASE)

_SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def _subfolders(top: Path) -> list[Path]:
    """Find the folders below a folder that are not hidden, sorted."""
    return sorted(path for path in top.iterdir() if not path.name.startswith(".") and path.is_dir())


def split_folders(top: Path) -> list[tuple[str, Path]]:
    """Find the folders ``train``, ``val`` and ``test`` below a folder, in any usual spelling."""
    folders = _subfolders(top)
    return [
        (split, path)
        for split, names in _SPELLINGS.items()
        for path in folders
        if path.name.lower() in names
    ]


def class_folders(top: Path) -> list[Path]:
    """Find the class folders below a folder, sorted, without hidden and unlabelled ones."""
    return [path for path in _subfolders(top) if not _UNLABELED.fullmatch(path.name)]


def unlabeled_folders(top: Path) -> list[Path]:
    """Find folders of unlabelled images next to splits or classes, in any usual spelling."""
    return [path for path in _subfolders(top) if _UNLABELED.fullmatch(path.name)]


@dataclass
class Folder(OwnImages):
    """Folder with ``train`` and optional ``val`` and ``test``, each with a folder for each class.

    ``Train``, ``validation`` and the like work as well. A folder ``unlabeled`` next to the splits,
    or in ``train`` next to the classes, holds images without labels, unless the setting
    ``unlabeled`` names other locations.

    The classes are the sorted union of the folders of all splits; within a class, images are sorted
    by path. Hidden files and folders are skipped. Without ``train``, no label is used: the file
    ``class_names`` lists the classes, and the images without labels are in their folder, or else
    anywhere in ``root``.
    """

    def read(self) -> Splits:
        """Read the dataset; sources are paths below ``root`` or ``unlabeled`` as given."""
        top = Path(self.root).expanduser()
        if not top.is_dir():
            raise DataError(
                f"dataset folder {top} does not exist: set root to the folder that "
                "holds train/<class>/"
            )
        images: dict[str, dict[str, list[str]]] = {split: {} for split in _SPELLINGS}
        # list the images of each class in each split
        parents = [top]
        for split, folder in split_folders(top):
            parents += [folder] if split == "train" else []
            for name, paths in images_by_class(folder).items():
                images[split].setdefault(name, []).extend(paths)
        folders = sorted(set().union(*images.values()))
        where = self.unlabeled or [
            str(path) for parent in parents for path in unlabeled_folders(parent)
        ]
        # without training images, a file has to list the classes
        if not images["train"]:
            if not self.class_names:
                raise DataError(
                    f"dataset folder {top} has no folder train: put images into "
                    f"{top}/train/<class>/, or write a list "
                    "of the classes, give it as classes.names, and set shots to 0"
                )
            named = read_class_mapping(Path(self.class_names), folders, complete=False)
            folders = list(named)
            where = where or str(top)
        # label images by their class
        names, texts = name_classes(folders, self.class_names, self.class_text)
        train, val, test = (
            tuple(
                Record(path, label)
                for label, folder in enumerate(folders)
                for path in by_class.get(folder, ())
            )
            for by_class in images.values()
        )
        unlabeled = find_unlabeled(where) if where else None
        return Splits(
            f"dataset folder {top}",
            names,
            train,
            val,
            test,
            unlabeled,
            self.open_source,
            class_texts=texts,
        )


def images_by_class(split: Path, require_all: bool = True) -> dict[str, list[str]]:
    """Find the images of each class below a folder; DataError for a class without, if required."""
    folders = class_folders(split)
    if not folders:
        raise DataError(
            f"folder {split} has no class folders: put the images into {split}/<class>/"
        )
    images: dict[str, list[str]] = {}
    for folder in folders:
        if paths := find_images(folder):
            images.setdefault(composed(folder.name), []).extend(paths)
        elif require_all:
            raise DataError(f"class folder {folder} has no images: add some, or remove the folder")
    return images
