from dataclasses import replace

import pytest
from benchmark_tree import image, make_tree
from runs import image_folder

from kdpl.__main__ import main
from kdpl.data.readers.benchmark import BENCHMARKS


@pytest.fixture(autouse=True)
def _known_classes(monkeypatch):
    """Let datasets be known to have as many classes as their miniatures, one but for a part of them."""
    for name, count in (("dtd", 3), ("imagenet", 3), ("imagenetv2", 12)):
        monkeypatch.setitem(BENCHMARKS, name, replace(BENCHMARKS[name], num_classes=count))


def checked(capsys, name, root, *more):
    code = main(["data", "check", name, f"--root={root}", "--workers=1", *more])
    return code, capsys.readouterr().out.splitlines()


def test_an_intact_dataset_is_counted_and_passes(tmp_path, capsys):
    folder = make_tree("imagenet", tmp_path)
    code, lines = checked(capsys, "imagenet", tmp_path)
    assert (code, lines) == (
        0,
        [
            f"dataset imagenet in {folder}",
            "classes: tench, crane, crane (3)",
            "train:    6 images of 3 classes",
            "val:      0 images of 0 classes",
            "test:     3 images of 3 classes",
            "9 images decoded, 0 of them bad",
        ],
    )


def test_truncated_and_missing_images_are_listed_with_the_reason(tmp_path, capsys):
    folder = make_tree("dtd", tmp_path)
    broken = folder / "images/c/7.jpg"
    broken.write_bytes(broken.read_bytes()[:-40])
    (folder / "images/a/4.jpg").unlink()
    code, lines = checked(capsys, "dtd", tmp_path)
    assert code == 1
    assert lines[5].startswith(f"image {broken} cannot be read (")
    assert "truncated" in lines[5]
    assert lines[6].startswith(f"image {folder / 'images/a/4.jpg'} does not exist")
    assert lines[7:] == ["12 images decoded, 2 of them bad"]


def test_wrong_number_of_classes_fails_and_names_what_is_missing(tmp_path, capsys):
    make_tree("imagenetv2", tmp_path)
    code, lines = checked(capsys, "imagenetv2", tmp_path)
    names = ", ".join(f"'name {number}'" for number in (1, 3, 4, 5, 6, 7, 8, 9, 11))
    assert code == 1
    assert lines[5] == f"wrong: test has images of 3 classes, expected 12; without images: {names} (9)"


def test_folder_and_its_unlabelled_images_are_checked(tmp_path, capsys):
    image_folder(tmp_path / "own", classes=("dog", "cat"))
    image(tmp_path / "pool/a.jpg")
    (tmp_path / "pool/b.jpg").write_bytes(b"no image")
    code, lines = checked(capsys, "folder", tmp_path / "own", f"--unlabeled={tmp_path / 'pool'}")
    assert code == 1
    assert (lines[1], lines[5]) == ("classes: cat, dog (2)", "unlabeled: 2 images")
    assert lines[6].startswith(f"image {tmp_path / 'pool/b.jpg'} cannot be read")
    assert lines[7] == "18 images decoded, 1 of them bad"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("check dtd", "dataset 'dtd' needs root: set it to where the dataset lies"),
        ("check mnist", "dataset 'mnist' is unknown: choose one of "),
        ("check dtd --root=gone", "dataset dtd needs the folder gone/dtd, which does not exist: "),
        ("check dtd --root=gone --workers=0", ""),
        ("check", ""),
        ("", ""),
        ("download dtd", "download needs the folder of all datasets: give --root"),
        ("download mnist --root=gone", "dataset 'mnist' cannot be downloaded: choose one of caltech101, "),
    ],
)
def test_mistakes_are_one_line(capsys, args, message):
    assert main(["data", *args.split()]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
