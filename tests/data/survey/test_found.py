import pytest
from benchmark_tree import image

from kdpl.data.survey.found import FoundImage, find, leave_out_copies


@pytest.mark.parametrize(
    "expected",
    [
        ["cat/deep/2.png cat train", "dog/1.png dog train", "unlabelled/3.png  train"],
        ["cat/1.png cat train", "dog/2.png dog train", "Unlabelled_images/3.png  train"],
        ["Training/a/1.png a train", "valid/b/3.png b val", "Testing/a/2.png a test"],
        [
            "train/a/1.png a train",
            "val/b/3.png b val",
            "test/a/2.png a test",
            "unlabeled/a/4.png  train",
        ],
    ],
)
def test_classes_and_splits_are_those_of_the_folders(expected, tmp_path):
    for path in [".git/a/0.png", *(line.split(" ")[0] for line in reversed(expected))]:
        image(tmp_path / path)
    found = [f"{each.path} {each.label} {each.split}" for each in find(tmp_path)]
    assert [line.removeprefix(f"{tmp_path}/") for line in found] == expected


def test_two_spellings_of_one_name_in_unicode_are_one_class(tmp_path):
    for path in ("train/jose\u0301/1.png", "test/jos\u00e9/2.png", "train/zoe/3.png"):
        image(tmp_path / path)
    (tmp_path / "images.csv").write_text(
        "image,label\n1.png,jose\u0301\n2.png,jos\u00e9\n3.png,zoe\n", encoding="utf-8"
    )
    labels = [each.label for each in find(tmp_path / "images.csv")]
    assert labels == ["jos\u00e9", "jos\u00e9", "zoe"]
    assert {each.label for each in find(tmp_path)} == {"jos\u00e9", "zoe"}


def test_of_equal_files_a_test_image_stays_before_val_before_labelled_before_unlabelled():
    described = [
        "x  train",
        "x cat train",
        "y cat train",
        "x dog test",
        "y cat val",
        "z cat train",
        "z  train",
    ]
    images = []
    for number, text in enumerate(described):
        digest, label, split = text.split(" ")
        images.append(FoundImage(str(number), label, split, digest=digest))
    kept, copies = leave_out_copies(images)
    assert [each.path for each in kept] == ["3", "4", "5"]
    assert [(each.path, stays.path) for each, stays in copies] == [
        ("0", "3"),
        ("1", "3"),
        ("2", "4"),
        ("6", "5"),
    ]
