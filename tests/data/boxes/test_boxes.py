import copy
import json

import numpy as np
import pytest
import zoo
from PIL import Image, ImageOps
from runs import error_line, noise, rows_of

from kdpl.__main__ import main
from kdpl.classifier.detections import read_detections
from kdpl.data.boxes.crops import MARK, name_of, read_crop
from kdpl.data.sources import content_of, find_unlabeled, open_source
from kdpl.errors import DataError
from kdpl.tasks import MultiClass


@pytest.fixture
def photos(tmp_path):
    """Three photographs, the second turned by its tag, and a damaged one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "c"):
        noise(60, 40, seed=ord(name)).save(folder / f"{name}.png")
    noise(60, 40, seed=1).save(folder / "b.jpg", exif=zoo.tag(6), quality=100)
    (folder / "d.jpg").write_bytes(b"no image")
    return folder


def megadetector():
    def box(bbox, category="1", conf=0.9, **more):
        return {"category": category, "conf": conf, "bbox": bbox, **more}

    in_a = [
        box([0.1, 0.25, 0.5, 0.5], classifications=[["7", 0.8]]),
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
    more = {"prediction": "x"}
    return {
        "predictions": [
            {"filepath": photo["file"], "detections": photo["detections"], **more}
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
    """Pixels from left to right and top to bottom of an image that was turned upright."""
    with Image.open(path) as image:
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    return pixels[top:bottom, left:right]


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("60,0,10,10", "is empty or outside of the image"),
        ("percent:0,-20,10,20", "is empty or outside of the image"),
        ("percent:10,10,0,5", "is empty or outside of the image"),
        ("nan,0,1,1", "is empty or outside of the image"),
        ("1,2,3", "has no box behind"),
        ("a,b,c,d", "has no box behind"),
    ],
)
def test_a_box_with_nothing_of_the_image_is_named(photos, text, said):
    with pytest.raises(DataError, match=said):
        read_crop(f"{photos}/a.png{MARK}{text}", content_of)


@pytest.mark.parametrize("name", ["d.jpg", "nope.jpg"])
def test_a_missing_or_damaged_photo_is_named(photos, name):
    with pytest.raises(DataError, match=name):
        open_source(f"{photos / name}{MARK}percent:0,0,100,100")


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
def test_predictions_are_those_of_the_crops_and_all_else_stays(make, photos, classifier, capsys):
    data, out = make(), photos / "classified.json"
    only = [] if make is coco else ["--only=animal"]
    content = classified(photos, data, classifier, "--top-k=2", "--margin=10%", *only)

    # the same crops, written by hand, as images
    detections = read_detections(out, None)[1]
    taken = [detection for detection in detections if "classifications" in detection.entry][:3]
    crops = photos / "crops"
    crops.mkdir()
    for number, detection in enumerate(taken):
        box = detection.box
        with Image.open(detection.image) as photo:
            upright = ImageOps.exif_transpose(photo)
        left, top = ((box[i] - 0.1 * box[2 + i]) * upright.size[i] for i in (0, 1))
        right, bottom = ((box[i] + 1.1 * box[2 + i]) * upright.size[i] for i in (0, 1))
        edges = (max(0, left), max(0, top), min(upright.width, right), min(upright.height, bottom))
        upright.crop(tuple(map(round, edges))).save(crops / f"{number}.png")
    capsys.readouterr()
    assert main(["predict", str(classifier), str(crops), "--top-k=2"]) == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(rows) == 3
    names = content.get("classification_categories", {})
    for detection, (_, first, p_first, second, p_second, _) in zip(taken, rows, strict=True):
        given = detection.entry["classifications"]
        pairs = given if make is megadetector else zip(*given.values(), strict=True)
        predicted, scores = zip(*pairs, strict=True)
        assert [names.get(name, name) for name in predicted] == [first, second]
        assert scores == pytest.approx([float(p_first), float(p_second)], abs=2e-6)

    # nothing but the predictions, their categories and failures was added
    before = copy.deepcopy(data)
    for tree in (before, content):
        tree.pop("classification_categories", None)
        for key in ("images", "predictions", "annotations"):
            for photo in tree.get(key, ()):
                for entry in photo.get("detections") or [photo]:
                    entry.pop("classifications", None)
                    entry.pop("failure", None)
    assert content == before


def test_boxes_that_were_not_chosen_or_cannot_be_read_are_told_apart(photos, classifier):
    content = classified(photos, megadetector(), classifier, "--only=animal")
    first, second, person, unsure = content["images"][0]["detections"]
    assert all(name in content["classification_categories"] for name, _ in first["classifications"])
    assert content["classification_categories"]["7"] == "fox"
    assert first["classifications"][0][0] != "7"
    assert "classifications" in second
    assert "classifications" not in person.keys() | unsure.keys()
    for detection in content["images"][3]["detections"]:
        assert "d.jpg" in detection["failure"]
    assert "is empty" in content["images"][1]["detections"][1]["failure"]
    # the format's own failures stay
    assert content["images"][4] == megadetector()["images"][4]


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

    monkeypatch.setattr("kdpl.classifier.detections.write_predictions", interrupted)
    file, out = written(photos, megadetector()), photos / "classified.json"
    command = ["boxes", str(file), f"--classifier={classifier}", f"--out={out}"]
    assert main(command) == 130
    assert not out.exists()
    monkeypatch.undo()
    assert main(command) == 0
    assert "resuming after 7 images" in capsys.readouterr().err
    assert out.exists()


def test_boxes_of_a_turned_photo_as_it_is_stored_are_refused(photos, capsys):
    data = coco()
    data["images"][1] |= {"width": 60, "height": 40}
    error = refused(capsys, written(photos, data), f"--out={photos}/crops.txt")
    assert "has the size 60 × 40 only before its orientation tag turns it" in error


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


def test_numbers_for_categories_are_read_as_the_names_that_they_stand_for(photos, classifier):
    data = megadetector()
    data["images"][0]["detections"][0]["category"] = 1
    data["classification_categories"] = None
    content = classified(photos, data, classifier, "--only=animal")
    first = content["images"][0]["detections"][0]["classifications"][0][0]
    assert content["classification_categories"][first]


def test_a_damaged_photo_of_coco_is_named_where_its_box_is_read(photos, classifier):
    data = coco()
    data["annotations"].append({"image_id": 3, "bbox": [0, 0, 10, 10], "category_id": 3})
    *_, last = classified(photos, data, classifier)["annotations"]
    assert "d.jpg" in last["failure"]


def test_wrong_options_are_refused_in_one_sentence(photos, classifier, capsys):
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


def test_a_classifier_of_several_labels_is_refused(photos, classifier, monkeypatch, capsys):
    monkeypatch.setattr(MultiClass, "columns", lambda *_: ["labels", "scores"])
    options = [f"--classifier={classifier}", f"--out={photos}/classified.json"]
    assert "names several classes" in refused(capsys, written(photos, coco()), *options)
