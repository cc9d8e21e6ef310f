from dataclasses import replace

import pytest
from benchmark_tree import make_tree
from runs import refused

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
    code, (origin, classes, *splits, decoded) = checked(capsys, "imagenet", tmp_path)
    assert (code, origin, classes) == (
        0,
        f"dataset imagenet in {folder}",
        "classes: tench, crane, crane (3)",
    )
    assert [line.split()[1] for line in splits] == ["6", "0", "3"]
    assert decoded == "9 images decoded, 0 of them bad"


def test_truncated_and_missing_images_are_listed_with_the_reason(tmp_path, capsys):
    folder = make_tree("dtd", tmp_path)
    broken = folder / "images/c/7.jpg"
    broken.write_bytes(broken.read_bytes()[:-40])
    (folder / "images/a/4.jpg").unlink()
    code, lines = checked(capsys, "dtd", tmp_path)
    assert code == 1
    assert lines[5].startswith(f"image {folder / 'images/a/4.jpg'} does not exist")
    assert lines[6].startswith(f"image {broken} cannot be read (")
    assert lines[7:] == ["12 images decoded, 2 of them bad"]


def test_wrong_number_of_classes_fails_and_names_what_is_missing(tmp_path, capsys):
    make_tree("imagenetv2", tmp_path)
    code, lines = checked(capsys, "imagenetv2", tmp_path)
    assert code == 1
    said = "wrong: test has images of 3 classes, expected 12; without images: 'name 1', 'name 3', "
    assert lines[5].startswith(said)


def test_mistakes_are_one_line(capsys):
    for args, message in (
        ("check dtd --root=gone", "dataset dtd needs the folder gone/dtd, which does not exist"),
        ("check dtd --root=gone --workers=0", ""),
        ("check dtd", "--root"),
        ("download mnist --root=gone", "dataset 'mnist' is not part of the benchmark"),
    ):
        refused(capsys, main(["data", *args.split()]), message)
