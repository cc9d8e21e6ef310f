import pytest
from benchmark_tree import image

from kdpl.data.found import FoundImage, find, leave_out_copies


@pytest.mark.parametrize(
    "expected",
    [
        ["cat/deep/2.png cat train", "dog/1.png dog train", "unlabelled/3.png  train"],
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
