"""Annotations in COCO's format as labels."""

import json

import pytest
import world
from runs import noise

from kdpl.data.datamodule import DomainDataModule
from kdpl.errors import DataError
from kdpl.multilabel.coco import Coco

CATEGORIES = [
    {"id": 7, "name": "dog"},
    {"id": 2, "name": "cat"},
    {"id": 9, "name": "nothing has it"},
]


def write(file, images, folder=None):
    """Write annotations, of the names of images the ids of their categories, and the images."""
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = folder or file.parent
    folder.mkdir(parents=True, exist_ok=True)
    annotations = []
    for number, (name, categories) in enumerate(images.items()):
        noise(20, 20, seed=len(name) + number).save(folder / name)
        annotations += [
            {"image_id": number, "category_id": category, "bbox": [1, 2, 3, 4]}
            for category in categories
        ]
    listed = [{"id": number, "file_name": name} for number, name in enumerate(images)]
    content = {"images": listed, "annotations": annotations, "categories": CATEGORIES}
    file.write_text(json.dumps(content))


TRAIN = {"a.png": [7, 2, 7], "b.png": [], "c.png": [2]}


@pytest.mark.parametrize(
    ("train", "test", "images"),
    [
        ("train.json", "test.json", "images"),
        ("train.json", "test.json", "."),
        ("train/_annotations.coco.json", "test/_annotations.coco.json", None),
        ("annotations/instances_train2017.json", "annotations/instances_test2017.json", "{}2017"),
    ],
)
def test_images_have_the_categories_of_their_annotations(tmp_path, train, test, images):
    for split, file, content in (("train", train, TRAIN), ("test", test, {"t.png": [7]})):
        write(tmp_path / file, content, images and tmp_path / images.format(split))
    splits = Coco(str(tmp_path)).read()
    # a category that nothing has is no class
    assert splits.class_names == ("cat", "dog")
    assert [record.label for record in splits.train] == [(0, 1), (), (0,)]
    assert [record.label for record in splits.test] == [(1,)]
    assert splits.val == ()
    assert splits.open_image(splits.train[0].source).size == (20, 20)


def test_a_file_that_two_patterns_name_is_one(tmp_path):
    write(tmp_path / "train.json", TRAIN)
    write(tmp_path / "annotations" / "instances_valid.json", {"v.png": [7]}, tmp_path)
    assert len(Coco(str(tmp_path)).read().val) == 1


def test_a_datamodule_knows_it_by_name_and_all_validation_images_choose_thresholds(tmp_path):
    write(tmp_path / "train.json", TRAIN, tmp_path / "images")
    write(tmp_path / "val.json", {f"{i}.png": [7] for i in range(9)}, tmp_path / "images")
    data = DomainDataModule("coco", str(tmp_path), shots=None)
    assert data.task == "multilabel"
    assert len(data.labels.training()) == 3
    assert len(data.labels.evaluation("val")) == 9


def test_what_is_missing_or_of_another_format_is_refused(tmp_path):
    with world.refused(DataError, "no annotations to train on"):
        Coco(str(tmp_path)).read()
    (tmp_path / "train.json").write_text('{"images": []}')
    with world.refused(DataError, "is not in COCO's format"):
        Coco(str(tmp_path)).read()
    write(tmp_path / "train.json", {"b.png": []})
    with world.refused(DataError, "has no annotation"):
        Coco(str(tmp_path)).read()
    write(tmp_path / "train" / "_annotations.coco.json", TRAIN)
    with world.refused(DataError, "are of one split"):
        Coco(str(tmp_path)).read()
