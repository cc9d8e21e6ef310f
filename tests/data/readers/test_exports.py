"""Labels that Label Studio and CVAT export."""

import json
import re

import pytest
import world
from PIL import Image

from kdpl.data.readers.table import Table
from kdpl.errors import DataError


def choice(*labels, name="class"):
    return {"type": "choices", "from_name": name, "value": {"choices": [*labels]}}


def rectangle(x, y, width, height, label, **value):
    box = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, **value}
    return {
        "type": "rectanglelabels",
        "from_name": "box",
        "value": box | {"rectanglelabels": [label]},
    }


def task(image, *results, **more):
    return {"data": {"image": image}, "annotations": [{"result": [*results], **more}]}


def tag(*labels):
    return "".join(f'<tag label="{label}" source="manual"></tag>' for label in labels)


def box(label, *corners, more=""):
    sides = zip(("xtl", "ytl", "xbr", "ybr"), corners, strict=True)
    places = " ".join(f'{key}="{value:.2f}"' for key, value in sides)
    return f'<box label="{label}" {places} occluded="0" {more}></box>'


def cvat(**images):
    body = "".join(
        f'<image id="{i}" name="{name}.png" width="40" height="20">{inner}</image>'
        for i, (name, inner) in enumerate(images.items())
    )
    return f"<annotations><version>1.1</version><meta></meta>{body}</annotations>"


@pytest.fixture
def read(tmp_path):
    """Function that reads an export beside four images, as image, classes and group."""
    for name in ("a", "b", "c", "sub/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 20)).save(tmp_path / f"{name}.png")

    def rows(export, **options):
        is_text = isinstance(export, str)
        file = tmp_path / ("export.xml" if is_text else "export.json")
        file.write_text(export if is_text else json.dumps(export))
        start = f"{tmp_path}/"
        return [
            (row.source.removeprefix(start), row.classes, row.group.removeprefix(start))
            for row in Table(str(file), **options).rows()
        ]

    return rows


ONE_LABEL = [("a.png", ("cat",), ""), ("sub/d.png", ("dog",), ""), ("c.png", None, "")]


def test_one_label_an_image_is_read_from_both(read, tmp_path):
    addresses = ["a.png", "/data/local-files/?d=photos/sub/d.png", "/data/upload/3/0a1b2c3d-c.png"]
    first, second, third = addresses
    label_studio = [
        task(first, choice("cat"), {"type": "textarea", "from_name": "note"}),
        task(second, choice("dog")),
        task(third, was_cancelled=True),
    ]
    assert read(label_studio) == ONE_LABEL
    assert read(cvat(a=tag("cat"), **{"x/sub/d": tag("dog")}, c="")) == ONE_LABEL
    # by its whole path
    assert read([task(f"{tmp_path}/a.png", choice("cat"))]) == ONE_LABEL[:1]


def test_several_labels_an_image_are_read_from_both(read):
    label_studio = [
        task("a.png", choice("cat", "dog")),
        task("b.png"),
        {"data": {"image": "c.png"}, "annotations": []},
    ]
    both, none = ("a.png", ("cat", "dog"), ""), ("c.png", None, "")
    assert read(label_studio, label_separator=";") == [both, ("b.png", (), ""), none]
    # in CVAT, an image of no class is like one that nobody has labelled
    assert read(cvat(a=tag("cat", "dog"), c=""), label_separator=";") == [both, none]


def test_boxes_are_images_of_the_group_of_their_photo(read):
    expected = [
        ("a.png#xywh=percent:10.0000,20.0000,30.0000,40.0000", ("cat",), "a.png"),
        ("a.png#xywh=percent:50.0000,0.0000,50.0000,100.0000", ("dog",), "a.png"),
    ]
    boxes = [rectangle(10, 20, 30, 40, "cat"), rectangle(50, 0, 50, 100, "dog")]
    assert read([task("a.png", *boxes), task("b.png")]) == expected
    boxes = box("cat", 4, 4, 16, 12) + box("dog", 20, 0, 40, 20)
    assert read(cvat(a=boxes, b="")) == expected


def test_of_several_annotations_the_ground_truth_counts_or_the_last(read):
    def given(label, day, truth=False):
        return task("a.png", choice(label), updated_at=f"2026-01-0{day}", ground_truth=truth)

    def together(*tasks):
        return [{**tasks[0], "annotations": [each["annotations"][0] for each in tasks]}]

    assert read(together(given("cat", 2), given("dog", 1)))[0][1] == ("cat",)
    assert read(together(given("cat", 2), given("dog", 2)))[0][1] == ("dog",)
    assert read(together(given("cat", 2), given("dog", 1, truth=True)))[0][1] == ("dog",)


POLYGON = {"type": "polygonlabels", "from_name": "shape", "value": {}}


@pytest.mark.parametrize(
    ("export", "words"),
    [
        ([{"image": "a.png", "choice": "cat"}], ["format JSON", "KeyError: 'data'"]),
        ({"tasks": 3}, ["is not an export of Label Studio"]),
        ([task("missing.png")], ["missing.png is not found: put it into"]),
        ([task("data:image/png;base64,AA")], ["is not found"]),
        ([task("a.png", choice("cat", "dog"))], ["2 labels (cat, dog)", "--label-separator"]),
        ([task("a.png", POLYGON)], ["polygonlabels, expected choices or rectanglelabels"]),
        ([task("a.png", choice("cat"), choice("x", name="y"))], ["2 places (class, y)"]),
        ([task("a.png", rectangle(1, 1, 5, 5, "cat", rotation=9))], ["a.png has a turned box"]),
        ("<annotations><image></annotations>", ["is not an export of CVAT", "export it again"]),
        (
            '<!DOCTYPE a [<!ENTITY b "bb">'
            + "".join(f'<!ENTITY b{i} "{f"&b{i - 1 or str()};" * 20}">' for i in range(1, 9))
            + "]><annotations>&b8;</annotations>",
            ["is not an export of CVAT", "amplification"],
        ),
        ("<html></html>", ["CVAT for images 1.1", "<html>"]),
        ("<annotations><track></track></annotations>", ["or has tracks"]),
        (cvat(a='<polygon label="x"/>'), ["a.png has a polygon, expected tags or boxes"]),
        (cvat(a=tag("cat") + box("dog", 1, 1, 2, 2)), ["of whole images and of boxes"]),
        (cvat(a=box("dog", 1, 1, 2, 2, more='rotation="9.5"')), ["turned box"]),
    ],
)
def test_what_is_no_export_or_says_several_things_is_one_sentence(read, export, words):
    with world.refused(DataError, ".*".join(map(re.escape, words))):
        read(export)


def test_a_label_with_the_separator_in_it_is_refused(read):
    with world.refused(DataError, "label_separator ';' in it"):
        read([task("a.png", choice("cat; dog", "eel"))], label_separator=";")
