import pytest
from benchmark_tree import image, make_tree
from runs import image_folder

from kdpl.__main__ import main
from kdpl.data.readers.benchmark import BENCHMARKS, Benchmark


@pytest.fixture
def small(monkeypatch):
    """Datasets of the benchmark that are known to have as many classes as their miniatures."""
    for name, count in (("dtd", 3), ("imagenet", 3)):
        facts = BENCHMARKS[name]
        known = Benchmark(facts.name, facts.folder, facts.images, facts.index, facts.layout, count)
        monkeypatch.setitem(BENCHMARKS, name, known)


def checked(capsys, name, root, *more):
    code = main(["data", "check", name, f"--root={root}", "--workers=1", *more])
    return code, capsys.readouterr().out.splitlines()


@pytest.mark.usefixtures("small")
def test_an_intact_dataset_is_counted_and_passes(tmp_path, capsys):
    folder = make_tree("imagenet", tmp_path)
    assert checked(capsys, "imagenet", tmp_path) == (
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


@pytest.mark.usefixtures("small")
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


def test_wrong_number_of_classes_fails_and_names_what_is_missing(tmp_path, capsys, monkeypatch):
    make_tree("imagenetv2", tmp_path)
    facts = BENCHMARKS["imagenetv2"]
    known = Benchmark(facts.name, facts.folder, facts.images, facts.index, facts.layout, 12)
    monkeypatch.setitem(BENCHMARKS, "imagenetv2", known)
    code, lines = checked(capsys, "imagenetv2", tmp_path)
    assert code == 1
    assert lines[5] == (
        "wrong: test has images of 3 classes, expected 12; without images: "
        "'name 1', 'name 3', 'name 4', 'name 5', 'name 6', 'name 7', 'name 8', 'name 9', 'name 11' (9)"
    )


def test_folder_and_its_unlabelled_images_are_checked(tmp_path, capsys):
    image_folder(tmp_path / "own", classes=("dog", "cat"))
    image(tmp_path / "pool/a.jpg")
    (tmp_path / "pool/b.jpg").write_bytes(b"no image")
    code, lines = checked(capsys, "folder", tmp_path / "own", f"--unlabeled={tmp_path / 'pool'}")
    assert code == 1
    assert lines[1] == "classes: cat, dog (2)"
    assert lines[2:6] == [
        "train:    8 images of 2 classes",
        "val:      0 images of 0 classes",
        "test:     8 images of 2 classes",
        "unlabeled: 2 images",
    ]
    assert lines[6].startswith(f"image {tmp_path / 'pool/b.jpg'} cannot be read")
    assert lines[7] == "18 images decoded, 1 of them bad"
    assert checked(capsys, "folder", tmp_path / "own")[0] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["check", "dtd"], "error: dataset 'dtd' needs root: set it to where the dataset lies"),
        (["check", "mnist"], "error: dataset 'mnist' is unknown: choose one of "),
        (["check", "dtd", "--root=gone"], "error: dataset dtd needs the folder gone/dtd, which does not exist: "),
        (["check", "dtd", "--root=gone", "--workers=0"], "error: "),
        (["check"], "error: "),
        ([], "error: "),
        (["download", "dtd"], "error: download needs the folder of all datasets: give --root"),
        (
            ["download", "mnist", "--root=gone"],
            "error: dataset 'mnist' cannot be downloaded: choose one of caltech101, ",
        ),
    ],
)
def test_mistakes_are_one_line(capsys, args, message):
    assert main(["data", *args]) == 1
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
