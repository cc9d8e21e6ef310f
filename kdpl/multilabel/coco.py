"""Dataset with annotations in COCO's format: an image has the categories in it as labels."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdpl.data.class_mapping import name_classes
from kdpl.data.sources import OwnImages, find_unlabeled
from kdpl.data.splits import Reader, Record, Splits
from kdpl.errors import DataError, reason
from kdpl.multilabel.task import MultiLabel

_SPELLINGS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
# patterns below root for a spelling: kdpl's, Roboflow's and COCO's
_PATTERNS = ("{}.json", "{}/_annotations.coco.json", "annotations/instances_{}*.json")


@dataclass
class Coco(OwnImages):
    """Folder with the annotations of ``train`` and, optionally, ``val`` and ``test``.

    A split's file is ``train.json``, ``train/_annotations.coco.json`` or
    ``annotations/instances_train2017.json``. Its images are in the folder of that file, in
    ``root``, or in the folders ``train``, ``train2017`` and ``images`` of ``root``. Boxes and
    segments are ignored, and an image without annotations has none of the classes. The classes are
    the categories that at least one image has, sorted by name.
    """

    task = MultiLabel.name

    def read(self) -> Splits:
        """Read the dataset; the images keep the order of their file."""
        # find and read the files
        top = Path(self.root).expanduser()
        parts = {split: _find(top, spellings) for split, spellings in _SPELLINGS.items()}
        if parts["train"] is None:
            raise DataError(
                f"{top} has no annotations to train on: put COCO's JSON there as train.json, or "
                "set root to the folder that has it"
            )
        splits = {split: [] if file is None else _read(top, file) for split, file in parts.items()}

        # number the categories by name
        keys = sorted({name for images in splits.values() for _, names in images for name in names})
        if not keys:
            raise DataError(f"{parts['train']} has no annotation: label a few images of each class")
        labels = {key: label for label, key in enumerate(keys)}
        train, val, test = (
            tuple(
                Record(source, tuple(sorted(labels[name] for name in categories)))
                for source, categories in images
            )
            for images in splits.values()
        )
        class_names, texts = name_classes(keys, self.class_names, self.class_text)
        unlabeled = find_unlabeled(self.unlabeled) if self.unlabeled else None
        contents = (train, val, test, unlabeled, self.open_source)
        return Splits(f"dataset {top}", class_names, *contents, class_texts=texts)


def _find(top: Path, spellings: tuple[str, ...]) -> Path | None:
    """Return a split's file of annotations, or None; DataError if there are several."""
    patterns = [pattern.format(spelling) for spelling in spellings for pattern in _PATTERNS]
    # two patterns may match one file
    files = [*dict.fromkeys(file for pattern in patterns for file in sorted(top.glob(pattern)))]
    if len(files) > 1:
        raise DataError(f"{files[0]} and {files[1]} are of one split: keep one of them")
    return files[0] if files else None


def _read(top: Path, file: Path) -> list[tuple[str, set[str]]]:
    """Return the images of a file, with the names of their categories."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        images = {image["id"]: (str(image["file_name"]), set[str]()) for image in content["images"]}
        for annotation in content["annotations"]:
            images[annotation["image_id"]][1].add(names[annotation["category_id"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is not in COCO's format ({reason(error)}): export the annotations again"
        ) from error
    split = file.stem.removeprefix("instances_")
    folders = [file.parent, top, *(top / name for name in (split, file.parent.name, "images"))]
    return [(_image(folders, name), categories) for name, categories in images.values()]


def _image(folders: list[Path], name: str) -> str:
    """Return the existing path of an image, or one whose reading fails."""
    paths = [folder / name for folder in folders]
    return str(next((path for path in paths if path.is_file()), paths[0]))


READERS: dict[str, Callable[..., Reader]] = {"coco": Coco}
"""Readers by name."""
