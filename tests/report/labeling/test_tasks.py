"""Tasks of labelling tools: what they show, and back as labels."""

import json
from pathlib import Path
from xml.etree import ElementTree
from zipfile import ZipFile

import pytest
from runs import image_folder, noise

from kdpl.data.readers.table import Table
from kdpl.data.sources import open_source
from kdpl.report.labeling.tasks import Prediction, write_tasks

LABELS = ["cat", 'a "dog" & <b>', "猫"]


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "a b&c").mkdir()
    for i, name in enumerate(("y", "x", "z")):
        noise(40, 20, seed=i).save(tmp_path / f"a b&c/{name} é.png")
    return [str(tmp_path / f"a b&c/{name} é.png") for name in ("y", "x", "z")]


def submitted(tool, out):
    """Export the tasks as the tool does if each prediction is submitted as it is."""
    if tool == "cvat":
        return out / "cvat.xml"
    tasks = json.loads((out / "label_studio.json").read_text())
    for task in tasks:
        (prediction,) = task["predictions"]
        task["annotations"] = [{"result": prediction["result"], "was_cancelled": False}]
    (out / "export.json").write_text(json.dumps(tasks))
    return out / "export.json"


def elements(text, kind):
    return ElementTree.fromstring(text).iter(kind)  # noqa: S314


@pytest.mark.parametrize("tool", ["label-studio", "cvat"])
def test_what_is_submitted_unchanged_are_the_predictions(tool, photos, tmp_path):
    given = [Prediction(*each, 0.5) for each in zip(photos, LABELS, strict=True)]
    write_tasks(tool, tmp_path, given, LABELS, open_source)
    rows = Table(str(submitted(tool, tmp_path))).rows()
    assert {row.source: row.classes for row in rows} == {
        each.source: (each.label,) for each in given
    }


@pytest.mark.parametrize("tool", ["label-studio", "cvat"])
def test_boxes_come_back_as_the_same_crops_of_their_photos(tool, photos, tmp_path):
    first, second, _ = photos
    places = [
        f"{first}#xywh=percent:10.0000,20.0000,30.0000,40.0000",
        f"{second}#xywh=3,4,10,11",
        f"{first}#xywh=percent:50.0000,0.0000,50.0000,100.0000",
    ]
    given = [Prediction(*each, 0.5) for each in zip(places, LABELS, strict=True)]
    write_tasks(tool, tmp_path, given, LABELS, open_source)
    rows = Table(str(submitted(tool, tmp_path))).rows()
    assert {row.group for row in rows} == {first, second}
    # the numbers are rounded, the pixels are not
    crops = {open_source(row.source).tobytes(): row.classes for row in rows}
    assert crops == {open_source(each.source).tobytes(): (each.label,) for each in given}


def test_each_tool_gets_the_images_and_the_labels_to_choose_from(photos, tmp_path):
    given = [Prediction(photo, "cat", p) for photo, p in zip(photos, (0.5, 0.7, 0.9), strict=True)]
    for tool in ("label-studio", "cvat"):
        write_tasks(tool, tmp_path, given, LABELS, open_source)
    # Label Studio: in the order of the suggestions, each image in the file; no declaration, which it refuses
    interface = (tmp_path / "label_studio.xml").read_text(encoding="utf-8")
    assert interface.startswith("<View>")
    choices = [each.get("value") for each in elements(interface, "Choice")]
    assert choices == LABELS
    tasks = json.loads((tmp_path / "label_studio.json").read_text())
    assert [task["data"]["source"] for task in tasks] == photos
    assert all(task["data"]["image"].startswith("data:image/webp;base64,") for task in tasks)
    assert [task["predictions"][0]["score"] for task in tasks] == [0.5, 0.7, 0.9]
    # CVAT: in the order of its frames, which it sorts by name
    names = [each.get("name") for each in elements((tmp_path / "cvat.xml").read_text(), "image")]
    assert names == sorted(photo.lstrip("/") for photo in photos)
    with ZipFile(tmp_path / "cvat.zip") as archive:
        assert archive.namelist() == names
        assert archive.read(names[0]) == Path("/", names[0]).read_bytes()
    labels = json.loads((tmp_path / "cvat_labels.json").read_text())
    assert [(label["name"], label["type"]) for label in labels] == [(n, "tag") for n in LABELS]


def test_images_of_a_dataset_without_files_are_shown_too(tmp_path):
    image_folder(tmp_path, images=1, splits=("train",))
    (file, *_) = tmp_path.rglob("*.png")
    for tool in ("label-studio", "cvat"):
        given = [Prediction("digits/1", "cat", 0.5)]
        write_tasks(tool, tmp_path, given, LABELS, lambda _: open_source(str(file)))
    assert json.loads((tmp_path / "label_studio.json").read_text())[0]["data"]["image"]
    with ZipFile(tmp_path / "cvat.zip") as archive:
        assert archive.namelist() == ["digits/1"]
