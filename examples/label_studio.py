"""Label the images of ``kdpl suggest`` in Label Studio, with the likely class filled in.

    python examples/label_studio.py tasks runs/to_label/labels.csv tasks.json
    python examples/label_studio.py labels export.json labels.csv

The first writes tasks to import, which contain their images, and prints the labelling interface,
to paste as a custom template. The second turns the project's export in the format JSON into a
table of images and labels; images that were skipped have no label.
"""

import base64
import csv
import json
import sys
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from PIL import Image, ImageOps

EDGE = 1024
"""Most pixels an edge of the images shown."""


def interface(labels: Iterable[str]) -> str:
    """Return the labelling interface, one class for each image."""
    choices = "".join(f"    <Choice value={quoteattr(label)}/>\n" for label in labels)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <Choices name="class" toName="image" choice="single">\n{choices}  </Choices>\n</View>'
    )


def shown(path: str) -> str:
    """Return an image in its URL, so that Label Studio needs no access to the folder."""
    with Image.open(path) as image:
        small = ImageOps.exif_transpose(image).convert("RGB")
    small.thumbnail((EDGE, EDGE))
    small.save(file := BytesIO(), "WEBP")
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def task(row: dict[str, str]) -> dict[str, Any]:
    """Return the task of a suggested image, which keeps the image's path."""
    score = float(row["probability"])
    choice = {
        "type": "choices",
        "from_name": "class",
        "to_name": "image",
        "value": {"choices": [row["likely"]]},
        "score": score,
    }
    return {
        "data": {"image": shown(row["image"]), "source": row["image"]},
        "predictions": [{"model_version": "kdpl", "score": score, "result": [choice]}],
    }


def labels(exported: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the path and the label of each image, by its last annotation that is not skipped."""
    for each in exported:
        given = [done for done in each["annotations"] if not done.get("was_cancelled")]
        chosen = [
            label
            for result in (given[-1]["result"] if given else ())
            if result["type"] == "choices"
            for label in result["value"]["choices"]
        ]
        yield each["data"]["source"], chosen[0] if chosen else ""


def write_tasks(suggested: Path, out: Path) -> None:
    """Write the tasks of a table of suggestions, and print the interface with its classes."""
    with suggested.open(newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    out.write_text(json.dumps([task(row) for row in rows]), encoding="utf-8")
    used = {row[column] for row in rows for column in ("label", "likely")}
    print(interface(sorted(used - {""})))


def write_labels(export: Path, out: Path) -> None:
    """Write the table of an export."""
    exported = json.loads(export.read_text(encoding="utf-8"))
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "label"), *labels(exported)])


if __name__ == "__main__":
    ways = {"tasks": write_tasks, "labels": write_labels}
    if len(sys.argv) != 4 or sys.argv[1] not in ways:
        sys.exit("usage: python examples/label_studio.py tasks|labels FROM TO")
    ways[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
