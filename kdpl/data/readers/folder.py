"""A dataset of one's own: ``root/train/<class>/…``, optional ``root/val`` and ``root/test``, unlabelled images."""

from collections.abc import Sequence
from pathlib import Path

from kdpl.data.class_mapping import name_classes
from kdpl.data.sources import find_unlabeled, open_source
from kdpl.data.splits import Record, Splits
from kdpl.data.storage import find_images
from kdpl.errors import DataError


def read_folder(
    root: str,
    unlabeled: str | Sequence[str] | None = None,
    class_names: str | None = None,
    class_text: str | None = None,
) -> Splits:
    """Read a dataset of folders.

    The classes are the sorted union of the folders of all splits; within a class images come in the sorted order of
    their paths. Hidden files and folders are skipped.

    Args:
        root: Folder that holds ``train`` and, if there are any, ``val`` and ``test``.
        unlabeled: Where unlabelled images are, see ``find_unlabeled``; None: the training images serve.
        class_names: File that maps folder to class name and text; None: the folders' names serve.
        class_text: What the text tower reads for a class, with ``{}`` in the place of its name or text.

    Returns:
        The dataset; sources are paths that begin with ``root`` or ``unlabeled`` as given.

    Raises:
        ConfigError: ``class_text`` has no place for the name, or a URL is of a kind that cannot be opened.
        DataError: If a folder is missing or holds no images, or the class names file does not fit.
    """
    top = Path(root).expanduser()
    if not top.is_dir():
        raise DataError(f"dataset folder {top} does not exist: set root to the folder that holds train/<class>/.")
    if not (top / "train").is_dir():
        raise DataError(f"dataset folder {top} has no folder train: put the labelled images into {top}/train/<class>/.")
    images = {split: _images_by_class(top / split) for split in ("train", "val", "test")}
    folders = sorted(set().union(*images.values()))
    names, texts = name_classes(folders, class_names, class_text)
    records = {
        split: tuple(Record(path, label) for label, folder in enumerate(folders) for path in by_class.get(folder, ()))
        for split, by_class in images.items()
    }
    return Splits(
        origin=f"dataset folder {top}",
        class_names=names,
        class_texts=texts,
        train=records["train"],
        val=records["val"],
        test=records["test"],
        unlabeled=find_unlabeled(unlabeled) if unlabeled else None,
        open_image=open_source,
    )


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
