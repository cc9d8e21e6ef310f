"""Suggestions as tasks of Label Studio or CVAT, with what the teacher predicts filled in."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.etree.ElementTree import Element, SubElement, indent, tostring
from zipfile import ZipFile

from PIL import Image

from kdpl.data.boxes.crops import MARK, Box, box_of, photo_of
from kdpl.report.accuracy import thumbnail
from kdpl.runtime.files import atomic_path, write_json, write_text

Tool = Literal["label-studio", "cvat"]

_EDGE = 1024  # pixels in Label Studio, whose boxes are shares of the image
_CONTROL = "class"


class Prediction(NamedTuple):
    """An image, or a box of one, with its most probable label."""

    source: str
    label: str
    probability: float


class _Photo(NamedTuple):
    name: str
    image: Image.Image
    predictions: list[tuple[Box | None, Prediction]]  # boxes in pixels


def write_tasks(
    tool: Tool,
    out: Path,
    predictions: Iterable[Prediction],
    labels: Sequence[str],
    open_image: Callable[[str], Image.Image],
) -> None:
    """Write what a labelling tool imports: images with predictions, and the labels to choose from.

    Boxes are shown on their photos.
    """
    by_photo: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_photo.setdefault(photo_of(prediction.source), []).append(prediction)
    boxes = any(
        MARK in prediction.source for predictions in by_photo.values() for prediction in predictions
    )
    # in CVAT in the order of its frames, which are sorted by name
    names = sorted(by_photo) if tool == "cvat" else by_photo
    photos = (_photo(name, open_image(name), by_photo[name]) for name in names)
    write = _write_label_studio if tool == "label-studio" else _write_cvat
    write(out, photos, labels, boxes)


def _photo(name: str, image: Image.Image, predictions: Iterable[Prediction]) -> _Photo:
    if Path(name).is_file():
        name = str(Path(name).absolute())
    placed = [
        (box_of(prediction.source, *image.size) if MARK in prediction.source else None, prediction)
        for prediction in predictions
    ]
    return _Photo(name, image, placed)


def _write_label_studio(
    out: Path, photos: Iterable[_Photo], labels: Sequence[str], boxes: bool
) -> None:
    # the labelling interface
    view = Element("View")
    SubElement(view, "Image", name="image", value="$image")
    kind, entry = ("RectangleLabels", "Label") if boxes else ("Choices", "Choice")
    control = SubElement(view, kind, name=_CONTROL, toName="image", choice="single")
    for label in labels:
        SubElement(control, entry, value=label)
    write_text(out / "label_studio.xml", _text(view))
    # the images are in the file, so that Label Studio needs no access to folders
    tasks = [
        {
            "data": {"image": thumbnail(photo.image, _EDGE)["uri"], "source": photo.name},
            "predictions": [
                {
                    "model_version": "kdpl",
                    "score": min(prediction.probability for _, prediction in photo.predictions),
                    "result": [*_results(photo)],
                }
            ],
        }
        for photo in photos
    ]
    write_json(out / "label_studio.json", tasks)


def _results(photo: _Photo) -> Iterable[Mapping[str, Any]]:
    wide, high = photo.image.size
    for number, (box, prediction) in enumerate(photo.predictions):
        kind, value = "choices", dict[str, Any](choices=[prediction.label])
        if box is not None:
            left, top, width, height = box
            kind = "rectanglelabels"
            value = {"x": 100 * left / wide, "y": 100 * top / high, "rotation": 0}
            value |= {"width": 100 * width / wide, "height": 100 * height / high}
            value["rectanglelabels"] = [prediction.label]
        yield {
            "id": str(number),
            "from_name": _CONTROL,
            "to_name": "image",
            "type": kind,
            "original_width": wide,
            "original_height": high,
            "image_rotation": 0,
            "value": value,
            "score": prediction.probability,
        }


def _write_cvat(out: Path, photos: Iterable[_Photo], labels: Sequence[str], boxes: bool) -> None:
    kind = "rectangle" if boxes else "tag"
    named = [{"name": label, "type": kind, "attributes": []} for label in labels]
    write_json(out / "cvat_labels.json", named)
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    listed = SubElement(SubElement(SubElement(root, "meta"), "task"), "labels")
    for label in labels:
        SubElement(SubElement(listed, "label"), "name").text = label
    with atomic_path(out / "cvat.zip") as temporary, ZipFile(temporary, "w") as archive:
        for number, photo in enumerate(photos):
            # the name in the archive is kept by CVAT, and says where the image is
            name = photo.name.lstrip("/")
            _add(archive, name, photo)
            wide, high = map(str, photo.image.size)
            attributes = {"id": str(number), "name": name, "width": wide, "height": high}
            image = SubElement(root, "image", attributes)
            for box, prediction in photo.predictions:
                if box is None:
                    SubElement(image, "tag", label=prediction.label, source="auto")
                    continue
                left, top, width, height = box
                corners = {"xtl": left, "ytl": top, "xbr": left + width, "ybr": top + height}
                pixels = {key: f"{value:.2f}" for key, value in corners.items()}
                SubElement(
                    image, "box", pixels, label=prediction.label, source="auto", occluded="0"
                )
    write_text(out / "cvat.xml", _text(root))


def _add(archive: ZipFile, name: str, photo: _Photo) -> None:
    if Path(photo.name).is_file():
        archive.write(photo.name, name)
        return
    # of a dataset without files
    photo.image.save(file := BytesIO(), "PNG")
    archive.writestr(name, file.getvalue())


def _text(root: Element) -> str:
    # Label Studio refuses a declaration of the encoding
    indent(root)
    return tostring(root, encoding="unicode") + "\n"
