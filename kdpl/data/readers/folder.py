"""Dataset in folders of classes, with or without splits, and of unlabelled images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdpl.data.class_mapping import name_classes, read_class_mapping
from kdpl.data.layout import SPLIT_OF, layout_of
from kdpl.data.paths import find_images
from kdpl.data.sources import OwnImages, find_unlabeled
from kdpl.data.splits import Record, Splits
from kdpl.errors import DataError
from kdpl.runtime.class_names import composed


@dataclass
class Folder(OwnImages):
    """Folder with ``train`` and optional ``val`` and ``test``, each with a folder for each class.

    ``layout_of`` finds these folders; those of the training images may also be directly in
    ``root``. A folder ``unlabeled`` next to the splits, or next to the classes, holds images
    without labels, unless the setting ``unlabeled`` names other locations.

    The classes are the sorted union of the folders of all splits; within a class, images are sorted
    by path. Hidden files and folders are skipped. Without training images in folders of classes, no
    label is used: the file ``class_names`` lists the classes, and the images without labels are in
    their folder, or else anywhere in ``root``.
    """

    def read(self) -> Splits:
        """Read the dataset; sources are paths below ``root`` or ``unlabeled`` as given."""
        top = Path(self.root).expanduser()
        if not top.is_dir():
            raise DataError(
                f"dataset folder {top} does not exist: set root to the folder that "
                "holds train/<class>/"
            )
        images: dict[str, dict[str, list[str]]] = {split: {} for split in SPLIT_OF.values()}
        # list the images of each class in each split
        parts, file = layout_of(top, self.class_names), self.class_names
        listed = read_class_mapping(Path(file), (), complete=False) if file else {}
        for part in parts:
            # with a list of classes, folders without a split may be years, for example
            years = listed and part.top == top and part.classes.isdisjoint(listed)
            if part.labeled and not years:
                for name, paths in images_by_class(part.top, part.folders).items():
                    images[part.split].setdefault(name, []).extend(paths)
        folders = sorted(set().union(*images.values()))
        where = self.unlabeled or [
            str(folder) for part in parts if not part.labeled for folder in part.folders
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
        origin = f"dataset folder {top}"
        return Splits(origin, names, train, val, test, unlabeled, self.open_source, texts)


def images_by_class(
    top: Path, folders: Sequence[Path], require_all: bool = True
) -> dict[str, list[str]]:
    """Find the images of class folders in a folder; DataError for one without, if required."""
    images: dict[str, list[str]] = {}
    for folder in folders:
        if paths := find_images(folder):
            images.setdefault(composed(folder.name), []).extend(paths)
        elif require_all:
            raise DataError(f"class folder {folder} has no images: add some, or remove the folder")
    if not images:
        raise DataError(f"folder {top} has no class folders: put the images into {top}/<class>/")
    return images
