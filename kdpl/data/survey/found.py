"""Contents of a user's images, in a folder or table: classes, splits, sizes, bad files, copies."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdpl.data.readers.folder import class_folders, split_folders, unlabeled_folders
from kdpl.data.readers.table import HELD_OUT, Table, read_rows, split_cell
from kdpl.data.storage import find_images
from kdpl.errors import DataError
from kdpl.runtime.class_names import composed

_KEPT_FIRST = {"test": 0, HELD_OUT: 0, "val": 1, "train": 2}


@dataclass(frozen=True)
class FoundImage:
    """Image found: absolute path, or name in a shard; ``label`` is empty if it has none.

    With a ``separator``, the label is a list of classes, or the separator alone for no class.
    ``split`` is ``train``, ``val``, ``test``, or ``held_out`` for test images set aside at random.
    Inspecting the image fills in its size, whether it is ``drawn``, grey on a plain ground, the
    digest of the file's bytes, or the ``fault`` that makes it unusable. A table may give it a
    ``group``.
    """

    path: str
    label: str
    split: str
    size: tuple[int, int] | None = None
    drawn: bool = False
    digest: str = ""
    fault: str | None = None
    separator: str | None = None
    group: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes that it is labelled with."""
        return (split_cell(self.label, self.separator) or ()) if self.label else ()


def find(
    path: Path,
    class_names: str | None = None,
    separator: str | None = None,
) -> list[FoundImage]:
    """List the images of a folder or table without opening them.

    A folder holds ``train/<class>/…``, ``val/<class>/…`` and ``test/<class>/…``, or ``<class>/…``
    without splits; a folder ``unlabeled``, next to the classes or the splits, holds images without
    labels. DataError if it does not exist or is damaged, or no class has a training image, unless a
    file ``class_names`` lists the classes: then all images of a folder without ``unlabeled`` are
    taken. With a ``separator``, a table's labels are lists of classes.
    """
    if path.is_file() or (path.suffix.lower() == ".csv" and not path.is_dir()):
        return _find_in_table(path.absolute(), class_names, separator)
    if separator is not None:
        raise DataError(
            f"{path} is no table, and only a table has several labels for an image: write one with "
            "the columns image and label"
        )
    if not path.is_dir():
        raise DataError(f"folder {path} does not exist: give the folder of your images")
    # images in folders of classes
    folder = path.absolute()
    parts = split_folders(folder)
    images = []
    for split, top in parts or [("train", folder)]:
        for class_folder in class_folders(top):
            label = composed(class_folder.name)
            images += [FoundImage(path, label, split) for path in find_images(class_folder)]
    # then the unlabelled ones, next to splits or classes
    for top in [folder, *(top for split, top in parts if split == "train")]:
        images += [
            FoundImage(path, "", "train")
            for unlabeled in unlabeled_folders(top)
            for path in find_images(unlabeled)
        ]
    if not class_names and not any(image.label and image.split == "train" for image in images):
        problem = (
            f"folder {folder} has no images in folders of classes: put them into {folder}/<class>/"
        )
        raise DataError(
            f"{problem}, or write a list of the classes and give it as --class-names "
            "to use no labels"
        )
    if any(image.split == "train" for image in images):
        return images
    # no training images: take all others as unlabelled
    labeled = {image.path for image in images}
    return images + [
        FoundImage(path, "", "train") for path in find_images(folder) if path not in labeled
    ]


def _find_in_table(table: Path, class_names: str | None, separator: str | None) -> list[FoundImage]:
    splits = Table(str(table), class_names=class_names, label_separator=separator).read()
    if not splits.train and not class_names:
        problem = f"table {table} has no labelled training image: label a few images of each class"
        raise DataError(
            f"{problem}, or write a list of the classes and give it as --class-names "
            "to use no labels"
        )
    # the rows are in order, and have labels where the splits have names of classes
    images = []
    for image, cell, split, _ in read_rows(table, not class_names, separator):
        source, classes = os.path.normpath(table.parent / image), split_cell(cell, separator)
        mark = separator or ""
        label = "" if classes is None else mark.join(sorted(classes)) or mark
        group = splits.groups.get(source, "")
        images.append(FoundImage(source, label, split, separator=separator, group=group))
    # training images first, and unlabelled ones last
    return sorted(images, key=lambda image: (not image.label, -_KEPT_FIRST[image.split]))


def leave_out_copies(
    images: Sequence[FoundImage],
) -> tuple[list[FoundImage], list[tuple[FoundImage, FoundImage]]]:
    """Leave out byte-equal copies, keeping test images first, then val, then train.

    Returns the images that stay, in their order, and each copy with the image it is a copy of.
    """
    first: dict[str, FoundImage] = {}
    for image in sorted(images, key=lambda image: (_KEPT_FIRST[image.split], not image.label)):
        first.setdefault(image.digest, image)
    copies = [(image, first[image.digest]) for image in images if first[image.digest] is not image]
    return [image for image in images if first[image.digest] is image], copies
