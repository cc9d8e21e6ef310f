import pytest
from benchmark_tree import image

from kdpl.data.survey import Found, find, leave_out_copies, look


@pytest.mark.parametrize(
    "expected",
    [
        ["cat/deep/2.png cat train", "dog/1.png dog train", "unlabelled/3.png  train"],
        ["Training/a/1.png a train", "valid/b/3.png b val", "Testing/a/2.png a test"],
        ["train/a/1.png a train", "val/b/3.png b val", "test/a/2.png a test", "unlabeled/a/4.png  train"],
    ],
)
def test_classes_and_splits_are_those_of_the_folders(expected, tmp_path):
    for path in [".git/a/0.png", *(line.split(" ")[0] for line in reversed(expected))]:
        image(tmp_path / path)
    found = [f"{each.path} {each.label} {each.split}" for each in find(tmp_path)]
    assert [line.removeprefix(f"{tmp_path}/") for line in found] == expected


def test_a_look_tells_size_digest_and_fault_in_order_for_any_number_of_workers(tmp_path):
    image(tmp_path / "a/1.png")
    image(tmp_path / "a/3.png", shade=100)
    (tmp_path / "a/2.png").write_bytes(b"no image")
    (tmp_path / "a/4.png").write_bytes((tmp_path / "a/1.png").read_bytes())
    alone, helped = (look(find(tmp_path), workers) for workers in (1, 2))
    assert alone == helped
    assert [each.size for each in alone] == [(12, 10), None, (12, 10), (12, 10)]
    assert alone[0].digest == alone[3].digest != alone[2].digest
    assert "2.png cannot be read" in alone[1].fault
    assert [each.fault is None for each in alone] == [True, False, True, True]


def test_of_equal_files_a_test_image_stays_before_val_before_labelled_before_unlabelled():
    described = ["x  train", "x cat train", "y cat train", "x dog test", "y cat val", "z cat train", "z  train"]
    images = []
    for number, text in enumerate(described):
        digest, label, split = text.split(" ")
        images.append(Found(str(number), label, split, digest=digest))
    kept, copies = leave_out_copies(images)
    assert [each.path for each in kept] == ["3", "4", "5"]
    assert [(each.path, stays.path) for each, stays in copies] == [("0", "3"), ("1", "3"), ("2", "4"), ("6", "5")]
