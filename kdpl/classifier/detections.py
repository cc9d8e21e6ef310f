"""Reads boxes from the JSON of MegaDetector, SpeciesNet and COCO, and writes that of COCO."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL.Image import Transpose

from kdpl.classifier.tables import Row
from kdpl.data.boxes.crops import Box
from kdpl.data.decoding import opened, turn_of
from kdpl.errors import DataError
from kdpl.runtime.files import read_text

_DETECTED = {"1": "animal", "2": "person", "3": "vehicle"}


class Detection(NamedTuple):
    """A box in a file of detections: image, box, category, confidence; a label in COCO alone."""

    image: str
    box: Box
    category: str
    confidence: float
    label: str = ""


def read_detections(file: Path, folder: str | None) -> list[Detection]:
    """Read boxes in order, of images in ``folder`` or beside the file; a DataError if damaged."""
    folder = str(Path(folder or file.parent).expanduser().absolute())
    try:
        # the formats differ in their keys
        data = json.loads(read_text(file, "file of detections"))
        if "annotations" in data:
            return list(_of_coco(data, folder))
        key, name = ("predictions", "filepath") if "predictions" in data else ("images", "file")
        categories = data.get("detection_categories", _DETECTED)
        return list(_of_photos(data[key], name, categories, folder))
    except (DataError, OSError, MemoryError):
        raise
    except Exception as error:  # files of another kind raise various errors
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(
            f"{file} is not what MegaDetector, SpeciesNet or COCO have ({why:.200}): correct it"
        ) from error


def write_coco(
    path: Path, rows: Iterable[Row], _: Sequence[str], detections: Iterable[Detection]
) -> None:
    """Write COCO's JSON: boxes with class and probability, but for rejected or unreadable ones."""
    images, numbers = dict[str, dict[str, Any]](), dict[str, int]()
    annotations = list[dict[str, Any]]()
    for row, detection in zip(rows, detections, strict=True):
        if row["class"] is None:
            continue
        if detection.image not in images:
            wide, high = _size(detection.image)
            images[detection.image] = {
                "id": len(images) + 1,
                "file_name": detection.image,
                "width": wide,
                "height": high,
            }
        # shares of the image to pixels
        image = images[detection.image]
        left, width = (share * image["width"] for share in detection.box[::2])
        top, height = (share * image["height"] for share in detection.box[1::2])
        annotation = {
            "id": len(annotations) + 1,
            "image_id": image["id"],
            "category_id": numbers.setdefault(row["class"], len(numbers) + 1),
            "bbox": [left, top, width, height],
            "area": width * height,
            "iscrowd": 0,
            "score": row["probability"],
        }
        annotations.append(annotation)
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    content = {"images": [*images.values()], "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


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
            yield Detection(path, (left, top, width, height), category, float(entry["conf"]))


def _of_coco(data: dict[str, Any], folder: str) -> Iterator[Detection]:
    images = {image["id"]: image for image in data["images"]}
    names = {category["id"]: category["name"] for category in data["categories"]}
    for entry in data["annotations"]:
        image = images[entry["image_id"]]
        path, wide, high = _placed(folder, image["file_name"]), image["width"], image["height"]
        if _is_of_stored_image(path, wide, high):
            raise DataError(
                f"image {path} has the size {high} × {wide} as viewers show it, but its boxes are "
                f"of {wide} × {high}: correct them, or write it upright, without an orientation tag"
            )
        # pixels to shares of the image
        left, top, width, height = map(float, entry["bbox"])
        box = (left / wide, top / high, width / wide, height / high)
        category = str(names[entry["category_id"]])
        yield Detection(path, box, category, float(entry.get("score", 1)), label=category)


def _is_of_stored_image(path: str, width: int, height: int) -> bool:
    try:
        return width != height and _size(path) == (height, width)
    except DataError:
        # reported when its boxes are read
        return False


_ON_ITS_SIDE = {
    Transpose.TRANSPOSE,
    Transpose.ROTATE_270,
    Transpose.TRANSVERSE,
    Transpose.ROTATE_90,
}


@cache
def _size(path: str) -> tuple[int, int]:
    # width and height of an upright image
    with opened(path) as image:
        return image.size[::-1] if turn_of(image) in _ON_ITS_SIDE else image.size


def _placed(folder: str, file: str) -> str:
    file = file.replace("\\", "/")
    return file if file.startswith("/") else f"{folder.rstrip('/')}/{file}"
