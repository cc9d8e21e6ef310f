"""Cut the boxes of a detector out of photographs, as images for kdpl.

    python examples/boxes.py detections.json photos crops animal

reads the JSON of MegaDetector, whose files lie below ``photos``, and writes an image for each box
of the category animal into ``crops``, with the table ``crops/images.csv``: fill in its column
label for ``python -m kdpl run crops/images.csv``, or give ``crops`` to ``predict``.
"""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

CONFIDENCE = 0.2
"""Least confidence of the detector."""

MARGIN = 0.1
"""Share of a box's width and height to add at each side: predict with that of the training."""


class Box(NamedTuple):
    """Left, top, right and bottom as shares of a photograph turned upright."""

    photo: str
    corners: tuple[float, float, float, float]


def read_boxes(file: Path, category: str) -> Iterator[Box]:
    """Read the boxes of a category that the detector is sure of."""
    found = json.loads(file.read_text(encoding="utf-8"))
    names = found["detection_categories"]
    for photo in found["images"]:
        # null if the detector could not read the photograph
        for box in photo.get("detections") or ():
            if names[str(box["category"])] == category and box["conf"] >= CONFIDENCE:
                left, top, width, height = box["bbox"]
                x, y = MARGIN * width, MARGIN * height
                yield Box(photo["file"], (left - x, top - y, left + width + x, top + height + y))


def crop(photo: Image.Image, box: Box) -> Image.Image:
    """Cut out a box, as far as it is in the photograph."""
    edges = (photo.width, photo.height, photo.width, photo.height)
    left, top, right, bottom = (
        min(max(round(share * edge), 0), edge)
        for share, edge in zip(box.corners, edges, strict=True)
    )
    # at least a pixel
    left, top = min(left, photo.width - 1), min(top, photo.height - 1)
    return photo.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def main(detections: Path, photos: Path, out: Path, category: str) -> None:
    """Write the crops and their table, in which the boxes of a photograph are a group."""
    out.mkdir(parents=True)
    with (out / "images.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", "group"])
        for number, box in enumerate(read_boxes(detections, category)):
            with Image.open(photos / box.photo) as photo:
                image = crop(ImageOps.exif_transpose(photo).convert("RGB"), box)
            name = f"{number:06}_{Path(box.photo).stem}.png"
            image.save(out / name)
            table.writerow([name, "", box.photo])


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit("usage: python examples/boxes.py DETECTIONS.json PHOTOS OUT CATEGORY")
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
