"""Reads boxes from the JSON of MegaDetector, SpeciesNet and COCO, and adds predictions to it."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags

from kdpl.classifier.tables import Row
from kdpl.data.boxes.crops import Box
from kdpl.data.decoding import opened
from kdpl.errors import DataError
from kdpl.runtime.files import read_text

_DETECTED = {"1": "animal", "2": "person", "3": "vehicle"}


class Detection(NamedTuple):
    """A box in a file of detections: image, box, category, confidence, and its JSON object."""

    image: str
    box: Box
    category: str
    confidence: float
    entry: dict[str, Any]


def read_detections(file: Path, folder: str | None) -> tuple[dict[str, Any], list[Detection]]:
    """Read a file of detections; returns its JSON, and its boxes in order.

    Images are in ``folder``, by default the folder of the file. A DataError if the file is missing,
    damaged, or of another format.
    """
    folder = str(Path(folder or file.parent).expanduser().absolute())
    try:
        # the formats differ in their keys
        data = json.loads(read_text(file, "file of detections"))
        if "annotations" in data:
            return data, list(_of_coco(data, folder))
        key, name = ("predictions", "filepath") if "predictions" in data else ("images", "file")
        categories = data.get("detection_categories", _DETECTED)
        return data, list(_of_photos(data[key], name, categories, folder))
    except (DataError, OSError, MemoryError):
        raise
    except Exception as error:  # files of another kind raise various errors
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(
            f"{file} is not what MegaDetector, SpeciesNet or COCO have ({why:.200}): correct it"
        ) from error


def write_predictions(
    path: Path,
    rows: Iterable[Row],
    columns: Sequence[str],
    data: Any,
    detections: Iterable[Detection],
) -> None:
    """Write a file of detections, with the rows of a table added to the objects of the boxes.

    MegaDetector gets pairs of a category's number and its probability, other formats get lists of
    classes and of scores. An unreadable box gets a ``failure``.
    """
    # numbers of the classes, in MegaDetector's format; existing numbers stay
    in_pairs = "detection_categories" in data
    categories = dict(data.get("classification_categories") or {})
    if in_pairs:
        data["classification_categories"] = categories
    numbers = {name: number for number, name in categories.items()}
    unused = count(1 + max(map(int, filter(str.isdecimal, categories)), default=-1))

    # the classes of each box
    ranks = [name.removeprefix("probability") for name in columns if "probability" in name]
    for row, detection in zip(rows, detections, strict=True):
        classes = [name for rank in ranks if (name := row[f"class{rank}"]) is not None]
        scores = [row[f"probability{rank}"] for rank in ranks[: len(classes)]]
        for name in classes:
            if name not in numbers:
                numbers[name] = str(next(unused))
                categories[numbers[name]] = name
        if row["error"] is not None:
            detection.entry["failure"] = row["error"]
        elif in_pairs:
            pairs = zip(classes, scores, strict=True)
            detection.entry["classifications"] = [[numbers[name], score] for name, score in pairs]
        else:
            detection.entry["classifications"] = {"classes": classes, "scores": scores}
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")


def _of_photos(
    photos: Iterable[dict[str, Any]], key: str, categories: Mapping[str, str], folder: str
) -> Iterator[Detection]:
    for photo in photos:
        path = _placed(folder, photo[key])
        for entry in photo.get("detections") or ():
            # already shares of the image
            left, top, width, height = map(float, entry["bbox"])
            number = str(entry["category"])
            category = categories.get(number, number)
            yield Detection(path, (left, top, width, height), category, float(entry["conf"]), entry)


def _of_coco(data: dict[str, Any], folder: str) -> Iterator[Detection]:
    images = {image["id"]: image for image in data["images"]}
    names = {category["id"]: category["name"] for category in data["categories"]}
    for entry in data["annotations"]:
        image = images[entry["image_id"]]
        path, wide, high = _placed(folder, image["file_name"]), image["width"], image["height"]
        if _is_of_stored_image(path, wide, high):
            raise DataError(
                f"image {path} has the size {wide} × {high} only before its orientation tag turns "
                "it, expected boxes of upright images: write it upright, without the tag"
            )
        # pixels to shares of the image
        left, top, width, height = map(float, entry["bbox"])
        box = (left / wide, top / high, width / wide, height / high)
        category = str(names[entry["category_id"]])
        yield Detection(path, box, category, float(entry.get("score", 1)), entry)


@cache
def _is_of_stored_image(path: str, width: int, height: int) -> bool:
    if not Path(path).is_file():
        return False
    try:
        with opened(path) as image:
            # tags from 5 on swap width and height
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return turned and width != height and image.size == (width, height)
    except DataError:
        # reported when its boxes are read
        return False


def _placed(folder: str, file: str) -> str:
    file = file.replace("\\", "/")
    return file if file.startswith("/") else f"{folder.rstrip('/')}/{file}"
