import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zoo
from PIL import Image
from runs import error_line, noise, rows_of

from kdpl.__main__ import main
from kdpl.classifier import PredictOptions
from kdpl.classifier.detections import read_detections
from kdpl.data.boxes.crops import MARK, name_of, read_crop
from kdpl.data.sources import content_of, find_unlabeled, open_source
from kdpl.errors import DataError
from kdpl.tasks import MultiClass


@pytest.fixture
def photos(tmp_path):
    """Three photographs, one with a damaged tag, one turned by its tag, and one that is damaged itself."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise(60, 40, seed=1).save(folder / "a.png", exif=b"Exif\0\0II*\0\xff\xff")
    noise(60, 40, seed=2).save(folder / "b.jpg", exif=zoo.tag(6), quality=100)
    noise(60, 40, seed=3).save(folder / "c.png")
    (folder / "d.jpg").write_bytes(b"no image")
    return folder


def megadetector():
    def box(bbox, category="1", conf=0.9, **more):
        return {"category": category, "conf": conf, "bbox": bbox, **more}

    in_a = [
        # a number stands for a name as its text does
        box([0.1, 0.25, 0.5, 0.5], category=1, classifications=[["7", 0.8]]),
        box([0.5, 0.5, 0.7, 0.7]),
        box([0, 0, 1, 1], category="2"),
        box([0.2, 0.2, 0.2, 0.2], conf=0.1),
    ]
    return {
        "info": {"format_version": "1.4", "detector": "made up"},
        "detection_categories": {"1": "animal", "2": "person"},
        "classification_categories": {"7": "fox"},
        "images": [
            {"file": "a.png", "detections": in_a},
            {"file": "b.jpg", "detections": [box([0.0, 0.0, 0.5, 0.25]), box([0.3, 0.3, 0, 0.2])]},
            {"file": "c.png", "detections": []},
            {"file": "d.jpg", "detections": [box([0, 0, 1, 1]), box([1.1, 0, 0.1, 0.1])]},
            {"file": "e.jpg", "failure": "Failure image access", "detections": None},
        ],
    }


def speciesnet():
    return {
        "predictions": [
            {"filepath": photo["file"], "detections": photo["detections"], "prediction": "x"}
            for photo in megadetector()["images"]
        ]
    }


def coco():
    sizes = {"a.png": (60, 40), "b.jpg": (40, 60), "c.png": (60, 40), "d.jpg": (60, 40)}
    boxes = [(0, [6, 10, 30, 20], 3), (0, [30, 20, 42, 28], 5), (1, [0, 0, 20, 15], 3)]
    return {
        "images": [
            {"id": i, "file_name": name, "width": width, "height": height}
            for i, (name, (width, height)) in enumerate(sizes.items())
        ],
        "annotations": [{"image_id": i, "bbox": box, "category_id": c} for i, box, c in boxes],
        "categories": [{"id": 3, "name": "red fox"}, {"id": 5, "name": "lynx, Iberian"}],
    }


def written(folder, data, name="found.json"):
    (folder / name).write_text(json.dumps(data), encoding="utf-8")
    return folder / name


def classified(photos, data, classifier, *options):
    """What the command writes for boxes in these photos."""
    out = photos / "classified.json"
    command = ["boxes", str(written(photos, data)), f"--classifier={classifier}", f"--out={out}"]
    assert main([*command, *options]) == 0
    return json.loads(out.read_text(encoding="utf-8"))


def refused(capsys, *options):
    """The error of a command that is refused."""
    assert main(["boxes", *map(str, options)]) == 1
    return error_line(capsys)


def plain_crop(path, left, top, right, bottom):
    """Pixels from left to right and top to bottom of an image, of which b.jpg is turned upright."""
    with Image.open(path) as image:
        is_turned = str(path).endswith("b.jpg")
        upright = image.transpose(Image.Transpose.ROTATE_270) if is_turned else image
        return np.asarray(upright.convert("RGB"))[top:bottom, left:right]


@pytest.mark.parametrize(
    ("name", "text", "pixels"),
    [
        ("a.png", "6,10,30,20", (6, 10, 36, 30)),
        ("a.png", "percent:10,25,50,50", (6, 10, 36, 30)),
        ("b.jpg", "percent:0,0,50,25", (0, 0, 20, 15)),
        ("b.jpg", "30,50,10,10", (30, 50, 40, 60)),
        ("a.png", "percent:50,50,70,70", (30, 20, 60, 40)),
        ("a.png", "-5,-5,10,10", (0, 0, 5, 5)),
        ("a.png", "59.9,39.9,0.05,0.05", (59, 39, 60, 40)),
        ("a.png", "percent:10,10,0.01,0.01", (6, 4, 7, 5)),
    ],
)
def test_a_crop_has_the_pixels_of_its_box_of_the_upright_image(photos, name, text, pixels):
    crop = open_source(f"{photos / name}{MARK}{text}")
    np.testing.assert_array_equal(np.asarray(crop), plain_crop(photos / name, *pixels))


def test_a_box_with_nothing_of_the_image_is_named(photos):
    for said, boxes in (
        ("is empty or outside of the image", ("60,0,10,10", "percent:10,10,0,5", "nan,0,1,1")),
        ("has no box behind", ("1,2,3", "a,b,c,d")),
    ):
        for text in boxes:
            with pytest.raises(DataError, match=said):
                read_crop(f"{photos}/a.png{MARK}{text}", content_of)


def test_a_margin_ends_at_the_edges_of_the_image(photos):
    path = str(photos / "a.png")
    for box, margin, pixels in (
        ((0.4, 0.5, 0.2, 0.1), 0.5, (18, 18, 42, 26)),
        ((0.0, 0.9, 0.2, 0.2), 0.25, (0, 34, 15, 40)),
        ((0.5, 0.5, 0.5, 0.5), 5, (0, 0, 60, 40)),
    ):
        crop = open_source(name_of(path, box, margin))
        np.testing.assert_array_equal(np.asarray(crop), plain_crop(path, *pixels))


@pytest.mark.parametrize("make", [megadetector, speciesnet, coco])
def test_predictions_are_those_of_the_crops_in_the_format_of_coco(
    make, photos, classifier, tmp_path, capsys
):
    file, only = written(photos, make()), [] if make is coco else ["--only=animal"]
    content = classified(photos, make(), classifier, *only)
    assert main(["boxes", str(file), f"--out={tmp_path}/crops.txt", *only]) == 0
    capsys.readouterr()
    assert main(["predict", str(classifier), f"{tmp_path}/crops.txt"]) == 0
    rows = [*csv.DictReader(capsys.readouterr().out.splitlines())]
    readable = [row for row in rows if not row["error"]]
    assert len(readable) == 3

    # what is written is read again
    detections = read_detections(photos / "classified.json", None)
    before = {(box.image, *np.round(box.box, 6)) for box in read_detections(file, None)}
    assert [box.category for box in detections] == [row["class"] for row in readable]
    scores = [float(row["probability"]) for row in readable]
    assert [box.confidence for box in detections] == pytest.approx(scores, abs=1e-6)
    assert {(box.image, *np.round(box.box, 6)) for box in detections} <= before
    sizes = {
        Path(image["file_name"]).name: (image["width"], image["height"])
        for image in content["images"]
    }
    assert sizes == {"a.png": (60, 40), "b.jpg": (40, 60)}


def test_a_list_of_crops_is_a_pool_and_a_table_a_dataset(photos, tmp_path):
    file = written(photos, coco())
    assert main(["boxes", str(file), f"--out={tmp_path}/crops.txt"]) == 0
    pool = find_unlabeled(str(tmp_path / "crops.txt"))
    assert [open_source(name).size for name in pool] == [(30, 20), (30, 20), (20, 15)]
    assert main(["boxes", str(file), f"--out={tmp_path}/crops.csv", "--only", "red fox"]) == 0
    rows = rows_of(tmp_path / "crops.csv")
    assert [row["label"] for row in rows] == ["red fox", "red fox"]
    assert [row["group"] for row in rows] == [str(photos / "a.png"), str(photos / "b.jpg")]
    assert rows[0]["image"] == name_of(str(photos / "a.png"), (0.1, 0.25, 0.5, 0.5))
    detected = written(photos, megadetector(), "detected.json")
    assert main(["boxes", str(detected), f"--out={tmp_path}/animals.csv", "--only=animal"]) == 0
    assert {row["label"] for row in rows_of(tmp_path / "animals.csv")} == {""}


def test_an_interrupted_command_resumes(photos, classifier, capsys, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("kdpl.classifier.PredictOptions", partial(PredictOptions, batch_size=2))
    file, out = written(photos, megadetector()), photos / "classified.json"
    command = ["boxes", str(file), f"--classifier={classifier}", f"--out={out}"]
    with monkeypatch.context() as patch:
        patch.setattr("kdpl.classifier.detections.write_coco", interrupted)
        assert main(command) == 130
    assert not out.exists()
    assert main(command) == 0
    assert "resuming after 6 images" in capsys.readouterr().err, "of whole batches"
    assert out.exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "is not what MegaDetector, SpeciesNet or COCO have"),
        ({"pictures": []}, "(KeyError: 'images')"),
        ({"images": [{"file": "a.png", "detections": [{"bbox": [1, 2, 3]}]}]}, "(ValueError: "),
        ({"images": [{"file": "a.png", "detections": []}]}, "has no such box among"),
        ("[" * 100_000, "(RecursionError: "),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_sentence(data, said, photos, capsys):
    file = written(photos, data)
    if isinstance(data, str):
        file.write_text(data)
    assert said in refused(capsys, file, f"--out={photos}/crops.txt")


def test_a_damaged_photo_of_coco_is_left_out(photos, classifier):
    data = coco()
    data["annotations"].append({"image_id": 3, "bbox": [0, 0, 10, 10], "category_id": 3})
    assert len(classified(photos, data, classifier)["annotations"]) == 3


def test_wrong_options_are_refused_in_one_sentence(photos, classifier, capsys, monkeypatch):
    file = written(photos, megadetector())
    for options, said in (
        (["--out=crops.json"], "--out crops.json has an unknown ending"),
        (["--out=t.csv", f"--classifier={classifier}"], "--out t.csv has an unknown ending"),
        (["--out=t.txt", "--only=wolf"], "whose categories are animal, person"),
        (["--out=t.txt", "--margin=much"], "--margin is 'much'"),
        (["--out=t.txt", "--min-confidence=0.95"], "has no such box among"),
    ):
        assert said in refused(capsys, file, *options)
    assert "nope.json does not exist" in refused(capsys, "nope.json", "--out=t.txt")
    turned = coco()
    turned["images"][1] |= {"width": 60, "height": 40}  # as it is stored
    error = refused(capsys, written(photos, turned), f"--out={photos}/crops.txt")
    assert "has the size 40 × 60 as viewers show it" in error
    monkeypatch.setattr(MultiClass, "columns", lambda *_: ["labels", "scores"])
    options = [f"--classifier={classifier}", f"--out={photos}/classified.json"]
    assert "names several classes" in refused(capsys, written(photos, coco()), *options)
