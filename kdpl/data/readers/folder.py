"""A dataset of one's own: ``root/train/<class>/…``, optional ``root/val`` and ``root/test``, unlabelled images."""

from dataclasses import dataclass
from pathlib import Path

from kdpl.data.class_mapping import name_classes
from kdpl.data.sources import OwnImages, find_unlabeled
from kdpl.data.splits import Record, Splits
from kdpl.data.storage import find_images
from kdpl.errors import DataError

_SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def split_folders(top: Path) -> list[tuple[str, Path]]:
    """Find the folders of the splits ``train``, ``val`` and ``test`` below a folder, in any usual spelling."""
    folders = sorted(path for path in top.iterdir() if path.is_dir())
    return [(split, path) for split, names in _SPELLINGS.items() for path in folders if path.name.lower() in names]


@dataclass
class Folder(OwnImages):
    """A folder that holds ``train`` and, if there are any, ``val`` and ``test``, each with a folder for each class.

    ``Train``, ``validation`` and the like are known as well.

    The classes are the sorted union of the folders of all splits; within a class images come in the sorted order of
    their paths. Hidden files and folders are skipped.
    """

    def read(self) -> Splits:
        """Read the dataset; sources are paths that begin with ``root`` or ``unlabeled`` as given."""
        top = Path(self.root).expanduser()
        if not top.is_dir():
            raise DataError(f"dataset folder {top} does not exist: set root to the folder that holds train/<class>/")
        images: dict[str, dict[str, list[str]]] = {split: {} for split in _SPELLINGS}
        for split, folder in split_folders(top):
            for name, paths in _images_by_class(folder).items():
                images[split].setdefault(name, []).extend(paths)
        if not images["train"]:
            raise DataError(f"dataset folder {top} has no folder train: put images into {top}/train/<class>/")
        folders = sorted(set().union(*images.values()))
        names, texts = name_classes(folders, self.class_names, self.class_text)
        train, val, test = (
            tuple(Record(path, label) for label, folder in enumerate(folders) for path in by_class.get(folder, ()))
            for by_class in images.values()
        )
        unlabeled = find_unlabeled(self.unlabeled) if self.unlabeled else None
        return Splits(f"dataset folder {top}", names, train, val, test, unlabeled, self.open_source, class_texts=texts)


def _images_by_class(split: Path) -> dict[str, list[str]]:
    folders = sorted(path for path in split.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DataError(f"folder {split} has no class folders: put the images into {split}/<class>/")
    images = {folder.name: find_images(folder) for folder in folders}
    for name, paths in images.items():
        if not paths:
            raise DataError(f"class folder {split / name} has no images: add some, or remove the folder")
    return images
