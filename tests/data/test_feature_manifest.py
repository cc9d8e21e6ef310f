import json
import re

import numpy as np
import pytest

from kdpl.data.augmentation import LightAffine, NoAugmentation, RandomResizedCrop
from kdpl.data.feature_manifest import Manifest
from kdpl.errors import DataError

SOURCES = [f"/data/cats/{i}.png" for i in range(3)] + ["/data/dogs/0.png"]


def manifest(**changes):
    settings = {
        "teacher": "t" * 32,
        "width": 24,
        "dataset": "folder",
        "sources": SOURCES,
        "image_size": 32,
        "augmentation": RandomResizedCrop(),
        "view_seed": 1,
        "views": 3,
    }
    return Manifest.of(**{**settings, **changes})


def test_it_is_read_as_it_was_written(tmp_path):
    manifest().save(tmp_path)
    assert Manifest.load(tmp_path) == manifest()
    fields = json.loads((tmp_path / "manifest.json").read_text())
    assert (fields["kind"], fields["version"], fields["dtype"]) == ("teacher features", 1, "float16")
    assert fields["view_parameters"] == ["top", "left", "height", "width", "flipped"]
    assert fields["made_with"].keys() == {"pillow", "torch", "torchvision", "numpy"}
    # a cache that was read must agree with one that would be written
    Manifest.load(tmp_path).require(tmp_path, manifest())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": "u" * 32}, f"the teacher is {'t' * 32} there and {'u' * 32} here"),
        ({"width": 25}, "the width of the features is 24 there and 25 here"),
        ({"dataset": "digits"}, "the dataset is folder there and digits here"),
        ({"sources": SOURCES[:3]}, "the number of unlabelled images is 4 there and 3 here"),
        ({"sources": SOURCES[::-1]}, "the digest of the list of unlabelled images is "),
        ({"image_size": 48}, "the image size of the student is 32 there and 48 here"),
        ({"augmentation": LightAffine()}, "the augmentation is {"),
        ({"augmentation": RandomResizedCrop(scale=(0.2, 1.0))}, "the augmentation is {"),
    ],
)
def test_what_differs_is_named_with_both_values(changes, words, tmp_path):
    with pytest.raises(DataError, match=re.escape(f"is of something else ({words}")) as error:
        manifest().require(tmp_path, manifest(**changes))
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(": choose another folder as data.init_args.teacher_cache, or remove it")
    assert str(tmp_path) in text


def test_another_seed_other_views_and_other_libraries_may_use_it(tmp_path):
    made = manifest()
    other = Manifest(**{**vars(manifest(view_seed=2, views=9)), "made_with": {"torch": "3"}, "rows_per_shard": 5})
    made.require(tmp_path, other)


def test_a_dataset_may_be_moved_but_not_changed():
    def digest(sources):
        return manifest(sources=sources).sources

    assert digest([source.replace("/data", "/mnt/elsewhere") for source in SOURCES]) == digest(SOURCES)
    assert digest([source.replace("dogs", "wolves") for source in SOURCES]) != digest(SOURCES)
    assert digest(["a.png", "b.png"]) == digest(["/x/a.png", "/x/b.png"]) != digest(["/x/ab.png", "/x/.png"])
    assert digest(["/x/a.png"]) == digest(["/y/a.png"])


def test_paths_that_are_no_utf8_are_told_apart():
    one, other = (manifest(sources=[f"/data/{name}.png", "/data/a.png"]).sources for name in ("\udcff", "\udcfe"))
    assert one != other


@pytest.mark.parametrize("augmentation", [RandomResizedCrop(), LightAffine(), NoAugmentation()])
def test_the_parameters_of_a_view_are_as_many_as_their_names(augmentation):
    drawn = augmentation.parameters(np.random.default_rng(0), 40, 30)
    assert len(drawn) == len(augmentation.parameter_names)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:100], "is damaged"),
        (lambda text: text.replace('"width"', '"breadth"'), "lacks or garbles the field 'width'"),
        (lambda text: text.replace('"width": 24', '"width": 0'), "garbles the field 'width'"),
        (lambda text: text.replace('"width": 24', '"width": "x"'), "garbles the field 'width'"),
        (lambda _: "[]", "is damaged"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "has format version 2, this kdpl reads version 1"),
        (lambda text: text.replace("teacher features", "notes"), "is damaged"),
        (None, r"is not a cache of teacher features \(it has no manifest\.json\)"),
    ],
)
def test_a_damaged_or_foreign_manifest_is_refused_in_one_sentence(damage, words, tmp_path):
    manifest().save(tmp_path)
    file = tmp_path / "manifest.json"
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage(file.read_text()))
    with pytest.raises(DataError, match=words) as error:
        Manifest.load(tmp_path)
    assert "\n" not in str(error.value)
    assert "remove" in str(error.value)
