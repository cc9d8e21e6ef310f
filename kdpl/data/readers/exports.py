"""Labels that were given in Label Studio or CVAT, as the columns of a table."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

from kdpl.data.boxes.crops import Box, name_of
from kdpl.errors import DataError, visible
from kdpl.runtime.files import read_text

# Label Studio puts eight digits before the name of an uploaded file
_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")
_OTHER_SHAPES = {"polygon", "polyline", "points", "ellipse", "mask", "skeleton", "cuboid"}


class _Labeled(NamedTuple):
    image: str
    labels: list[str] | None  # None if nobody has looked at the image
    boxes: list[tuple[Box, str]]


def read_export(file: Path, join: Callable[[list[str] | None, str], str]) -> dict[str, list[str]]:
    """Read Label Studio's JSON, or CVAT's XML for images, as columns image, label and group.

    Boxes are images, ``kdpl.data.boxes.crops``, of the group of their photo. ``join`` makes the
    cell of an image's labels, None if it has none yet, and is told what has them.
    """
    read, what = _READERS[file.suffix.lower()]
    text = read_text(file, "labels in")
    try:
        labeled = [*read(text, file.parent)]
    except (LookupError, TypeError, ValueError, AttributeError, ElementTree.ParseError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{file} is not {what} ({why:.200}): export it again") from error
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    # one kind of labels, of photos or of their boxes
    boxes = [(image.image, *box) for image in labeled for box in image.boxes]
    if boxes and any(image.labels for image in labeled):
        raise DataError(
            f"{file} has labels of whole images and of boxes, expected one of the two: remove the "
            "others in the labelling tool"
        )
    rows = [(image.image, image.labels, "") for image in labeled]
    if boxes:
        rows = [(name_of(photo, box), [label], photo) for photo, box, label in boxes]
    return {
        "image": [image for image, _, _ in rows],
        "label": [join(labels, f"image {image} in {file}") for image, labels, _ in rows],
        "group": [group for _, _, group in rows],
    }


def _of_label_studio(text: str, folder: Path) -> Iterator[_Labeled]:
    controls = set[str]()
    for task in json.loads(text):
        # kdpl writes the path beside the image
        data, annotations = task["data"], task["annotations"]
        path = data["source"] if "source" in data else _path_in(data["image"])
        image = _find_image(path, folder)
        done = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
        if not done:
            yield _Labeled(image, None, [])
            continue

        # of several people, the one marked as right, or the last one
        def rank(annotation: Mapping[str, Any]) -> tuple[bool, str]:
            return bool(annotation.get("ground_truth")), str(annotation.get("updated_at", ""))

        labels, boxes = list[str](), list[tuple[Box, str]]()
        for result in max(reversed(done), key=rank)["result"]:
            kind, value = result["type"], result.get("value")
            if kind == "choices":
                labels += map(str, value["choices"])
            elif kind == "rectanglelabels":
                _require_upright(value.get("rotation"), path)
                left, top, width, height = (
                    float(value[name]) / 100 for name in ("x", "y", "width", "height")
                )
                boxes += [((left, top, width, height), str(n)) for n in value["rectanglelabels"]]
            elif kind.endswith("labels"):
                raise DataError(
                    f"image {path} has {kind}, expected choices or rectanglelabels: label it with "
                    "one of them"
                )
            else:
                # such as a comment
                continue
            controls.add(str(result["from_name"]))
        yield _Labeled(image, labels, boxes)
    if len(controls) > 1:
        raise DataError(
            f"labels are given in {len(controls)} places ({', '.join(sorted(controls))}), expected "
            "one: remove the others from the labelling interface"
        )


def _of_cvat(text: str, folder: Path) -> Iterator[_Labeled]:
    # expat limits what entities expand to, and reads no others
    root = ElementTree.fromstring(text)  # noqa: S314
    if root.tag != "annotations" or root.find("track") is not None:
        raise ValueError(f"it begins with <{root.tag}>, or has tracks")
    for image in root.iter("image"):
        name, wide, high = image.attrib["name"], image.attrib["width"], image.attrib["height"]
        if other := _OTHER_SHAPES & {shape.tag for shape in image}:
            raise DataError(
                f"image {name} has a {min(other)}, expected tags or boxes: label it with one of "
                "them"
            )
        boxes = list[tuple[Box, str]]()
        for box in image.iterfind("box"):
            _require_upright(box.get("rotation"), name)
            left, right = (float(box.attrib[key]) / float(wide) for key in ("xtl", "xbr"))
            top, bottom = (float(box.attrib[key]) / float(high) for key in ("ytl", "ybr"))
            boxes.append(((left, top, right - left, bottom - top), box.attrib["label"]))
        tags = [tag.attrib["label"] for tag in image.iterfind("tag")]
        # without a tag, it may be of no class or not labelled yet
        yield _Labeled(_find_image(name, folder), tags or None, boxes)


_READERS: Mapping[str, tuple[Callable[[str, Path], Iterable[_Labeled]], str]] = {
    ".json": (_of_label_studio, "an export of Label Studio in its format JSON"),
    ".xml": (_of_cvat, "an export of CVAT in its format CVAT for images 1.1"),
}
EXPORTS = frozenset(_READERS)
"""Endings of exported files."""


def _require_upright(rotation: object, image: str) -> None:
    if float(str(rotation or 0)) != 0:
        raise DataError(f"image {image} has a turned box, expected upright ones: draw it upright")


def _path_in(address: str) -> str:
    """Return the path in the address of an image that Label Studio serves."""
    url = urlsplit(address)
    return unquote(parse_qs(url.query).get("d", [url.path])[0])


def _find_image(path: str, folder: Path) -> str:
    """Find an image by what a labelling tool calls it: itself, or in the export's folder."""
    *parents, name = (part for part in PurePosixPath(path).parts if part != "/")
    tails = [
        PurePosixPath(*parents[start:], file)
        for file in dict.fromkeys((name, _UPLOADED.sub("", name)))
        for start in range(len(parents) + 1)
    ]
    candidates = [Path("/", *parents, name), *(folder / tail for tail in tails)]
    for candidate in candidates:
        if candidate.is_file():
            return str(candidate.absolute())
    raise DataError(
        f"image {visible(path)} is not found: put it into {folder.absolute()}, under this name"
    )
