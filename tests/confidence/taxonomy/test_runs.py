"""A tree from a run's settings to its test, classifier, predictions and report."""

import csv
import json
import re
import shutil

import pytest
import runs
import torch
import world
from PIL import Image
from sklearn.datasets import load_digits

from kdpl.__main__ import main
from kdpl.classifier import Classifier
from kdpl.confidence.taxonomy.scores import FILE, LevelScores

SHAPES = {
    "round": ["zero", "six", "eight", "nine"],
    "open": ["two", "three", "five"],
    "straight": ["four", "seven"],
    "digit": ["one", "round", "open", "straight"],
}
PARENTS = {child: parent for parent, children in SHAPES.items() for child in children}
PREDICTIONS = "test_predictions.csv"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a tree, tested; no test changes it."""
    folder = tmp_path_factory.mktemp("tree")
    table = folder / "shapes.csv"
    table.write_text("child,parent\n" + "".join(f"{c},{p}\n" for c, p in PARENTS.items()))
    tree = f"--data.init_args.classes.taxonomy={table}"
    assert runs.fit_teacher(folder / "teacher", tree, *runs.AVERAGING) == 0
    assert runs.test(folder / "teacher") == 0
    assert runs.fit_student(folder / "student", folder / "teacher", tree) == 0
    assert runs.test(folder / "student") == 0
    return folder


def results(folder):
    return json.loads((folder / "test.json").read_text())


def test_a_tree_changes_nothing_else(run, student_run):
    plain, tree = results(student_run), results(run / "student")
    assert plain == {name: value for name, value in tree.items() if "level" not in name}
    for name in ("class_vectors.safetensors", PREDICTIONS, "classifier/model.safetensors"):
        assert (run / "student" / name).read_bytes() == (student_run / name).read_bytes()


def test_a_test_measures_each_level_and_the_whole_path(run):
    found = results(run / "student")
    # the deepest level is that of the classes
    assert found["test/level_2_acc"] == pytest.approx(found["test/acc"], abs=1e-6)
    assert found["test/level_1_acc"] > found["test/level_path"]
    assert 0 <= found["test/level_path"] <= found["test/level_2_acc"]
    assert "test/level_1_acc" in results(run / "teacher")
    assert (run / "student" / FILE).read_text() == (run / "shapes.csv").read_text()
    known = Classifier.load(run / "student" / "classifier").companions["taxonomy"]
    assert isinstance(known, LevelScores)
    assert known.scores.shape == (198, 2)


@pytest.fixture
def photos(tmp_path):
    digits = load_digits()
    for i in range(12):
        Image.fromarray(digits.images[i].astype("uint8") * 15).save(tmp_path / f"{i:02d}.png")
    return tmp_path


def calibrated(run, tmp_path):
    """A copy of the classifier, whose held-out images are ten of each class, as it predicts them."""
    folder = shutil.copytree(run / "student" / "classifier", tmp_path / "classifier")
    classifier = Classifier.load(folder)
    images = world.images_of(torch.arange(200), seed=3)
    for i, (image, (top,)) in enumerate(zip(images, classifier.predict([*images]), strict=True)):
        own = tmp_path / "held_out" / top.class_name
        own.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(own / f"{i}.png")
    assert main(["calibrate", str(folder), str(tmp_path / "held_out")]) == 0
    return folder


def test_predict_names_the_deepest_node_after_calibration(run, photos, tmp_path):
    folder, table = calibrated(run, tmp_path), tmp_path / "table.csv"
    images = [str(each) for each in sorted(photos.glob("*.png"))]
    assert main(["predict", str(folder), *images, "--level-error=5%", f"--out={table}"]) == 0
    why = tmp_path / "why"
    options = ["--level-error=5%", f"--explain={why}"]
    assert main(["predict", str(folder), *images[:2], *options]) == 0
    assert len(list(why.iterdir())) == 2
    rows = list(csv.DictReader(table.open()))
    assert list(rows[0]) == ["path", "class", "probability", "level", "error"]
    assert {row["level"] for row in rows} <= {"0", "1", "2"}
    for row in rows:
        nodes = {"0": {""}, "1": {"round", "open", "straight", "one"}}.get(row["level"], PARENTS)
        assert row["class"] in nodes


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--level-error=nothing"], "--level-error is 'nothing', expected a share"),
        (["--level-error=2%", "--max-error=2%"], "each decide what is predicted: give one"),
        (
            ["--level-error=0.1%"],
            "at no level 198 held-out images show an error of 0.1%, the least",
        ),
        (
            ["--level-error=99%", "--top-k=2"],
            "--level-error 99% decides what .*: leave out --top-k",
        ),
        (["--level-error=2%", "--add-classes=pyproject.toml"], "leave out --add-classes"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options, says, run, photos, capsys):
    assert main(["predict", str(run / "student" / "classifier"), str(photos), *options]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(says, error), error


def test_a_classifier_without_a_tree_says_so(classifier, photos, capsys):
    assert main(["predict", str(classifier), str(photos), "--level-error=2%"]) == 1
    assert (
        "no tree of its classes: train it with data.init_args.classes.taxonomy"
        in capsys.readouterr().err
    )


def test_a_table_that_is_no_tree_ends_a_fit_before_training(tmp_path, capsys):
    table = tmp_path / "tree.csv"
    table.write_text("child,parent\nzero,digit\n")
    assert runs.fit_teacher(tmp_path / "out", f"--data.init_args.classes.taxonomy={table}") == 1
    assert "lacks the class 'eight'" in capsys.readouterr().err
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_tree_of_a_fit_that_was_given_up_is_not_taken_over(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / FILE).write_text("child,parent\nzero,digit\n")
    assert runs.fit_teacher(out) == 0
    assert not (out / FILE).exists()


def test_the_report_draws_the_tree(run, student_run, tmp_path):
    pytest.importorskip("kdpl.report")
    assert main(["report", str(run / "student")]) == 0
    page = (run / "student" / "report.html").read_text()
    assert 'id="taxonomy"' in page
    # once each: a leaf that ends early is drawn at its own level alone
    for name in (*PARENTS, "digit"):
        assert page.partition('id="taxonomy"')[2].partition("</svg>")[0].count(f">{name} <") <= 1
    assert ">round <" in page
    page = tmp_path / "report.html"
    assert main(["report", str(student_run), f"--out={page}"]) == 0
    assert 'id="taxonomy"' not in page.read_text()


@pytest.mark.slow
def test_a_test_on_two_processes_has_the_same_numbers(run, tmp_path):
    shutil.copytree(run / "student", tmp_path / "student")
    known = results(tmp_path / "student")
    (tmp_path / "student" / "test.json").unlink()
    options = [f"--out={tmp_path}/student", "--trainer.devices=2", "--trainer.strategy=ddp"]
    # in a process of its own, which starts the other
    process = runs.start_process(["test", f"--config={tmp_path}/student/config.yaml", *options])
    assert process.wait() == 0, process.stderr.read()
    assert results(tmp_path / "student") == known
