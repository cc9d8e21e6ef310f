"""Dataset with annotations in COCO's format: the labels of an image are the categories in it."""

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
# below root, for a spelling: our own, Roboflow's export, and COCO's own
_PLACES = ("{}.json", "{}/_annotations.coco.json", "annotations/instances_{}*.json")


@dataclass
class Coco(OwnImages):
    """Folder with the annotations of ``train`` and, optionally, ``val`` and ``test``.

    They are ``train.json``, ``train/_annotations.coco.json`` or
    ``annotations/instances_train2017.json``. Images are looked for in the folder of that file, in
    ``root``, and in the folders ``train``, ``train2017`` and ``images`` of ``root``. Boxes and
    segments are ignored, and an image without an annotation is of none of the classes. The classes
    are the categories that an image has, sorted by name.
    """

    task = MultiLabel.name

    def read(self) -> Splits:
        """Read the dataset, in the order of the images in each file."""
        top = Path(self.root).expanduser()
        parts = {split: _find(top, spellings) for split, spellings in _SPELLINGS.items()}
        if parts["train"] is None:
            raise DataError(
                f"{top} has no annotations to train on: put COCO's JSON there as train.json, or "
                "set root to the folder that has it"
            )
        found = {split: [] if file is None else _read(top, file) for split, file in parts.items()}
        keys = sorted({name for images in found.values() for _, own in images for name in own})
        if not keys:
            raise DataError(f"{parts['train']} has no annotation: label a few images of each class")
        labels = {key: label for label, key in enumerate(keys)}
        train, val, test = (
            tuple(
                Record(source, tuple(sorted(labels[name] for name in own)))
                for source, own in images
            )
            for images in found.values()
        )
        names, texts = name_classes(keys, self.class_names, self.class_text)
        unlabeled = find_unlabeled(self.unlabeled) if self.unlabeled else None
        own = (train, val, test, unlabeled, self.open_source)
        return Splits(f"dataset {top}", names, *own, class_texts=texts)


def _find(top: Path, spellings: tuple[str, ...]) -> Path | None:
    """The annotations of a split; None if there are none, DataError if there are several files."""
    patterns = [place.format(spelling) for spelling in spellings for place in _PLACES]
    # two patterns may name one file
    files = [*dict.fromkeys(file for each in patterns for file in sorted(top.glob(each)))]
    if len(files) > 1:
        raise DataError(f"{files[0]} and {files[1]} are of one split: keep one of them")
    return files[0] if files else None


def _read(top: Path, file: Path) -> list[tuple[str, set[str]]]:
    """The images of a file, with the names of the categories in them."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = {each["id"]: str(each["name"]) for each in content["categories"]}
        images = {each["id"]: (str(each["file_name"]), set[str]()) for each in content["images"]}
        for each in content["annotations"]:
            images[each["image_id"]][1].add(names[each["category_id"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is not in COCO's format ({reason(error)}): export the annotations again"
        ) from error
    split = file.stem.removeprefix("instances_")
    places = [file.parent, top, *(top / name for name in (split, file.parent.name, "images"))]
    return [(_image(places, name), own) for name, own in images.values()]


def _image(places: list[Path], name: str) -> str:
    """The path of an image where it exists; where it does not, reading it says so."""
    paths = [place / name for place in places]
    return str(next((path for path in paths if path.is_file()), paths[0]))


READERS: dict[str, Callable[..., Reader]] = {"coco": Coco}
"""Entry point of ``kdpl.datasets``."""
