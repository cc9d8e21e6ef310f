"""A tree from a run's settings to its test, classifier, predictions and report."""

import shutil

import pytest
import runs
import torch
import world
from PIL import Image

from kdpl.__main__ import main
from kdpl.callbacks.results import SaveTestResults
from kdpl.classifier import Classifier
from kdpl.confidence.report import TREE
from kdpl.confidence.taxonomy.scores import FILE
from kdpl.data.options import ClassOptions
from kdpl.errors import ArtifactError, DataError
from kdpl.report.page import fill
from kdpl.report.run_folder import Run
from kdpl.runtime.predictions import read_results

SHAPES = {
    "round": ["zero", "six", "eight", "nine"],
    "open": ["two", "three", "five"],
    "straight": ["four", "seven"],
    "digit": ["one", "round", "open", "straight"],
}
PARENTS = {child: parent for parent, children in SHAPES.items() for child in children}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    file = tmp_path_factory.mktemp("tree") / "shapes.csv"
    file.write_text("child,parent\n" + "".join(f"{c},{p}\n" for c, p in PARENTS.items()))
    return file


@pytest.fixture(scope="module")
def run(table, teacher_run):
    """The shared teacher's student with a tree, tested; no test changes it."""
    out, tree = table.parent / "student", f"--data.init_args.classes.taxonomy={table}"
    assert runs.fit_student(out, teacher_run, tree) == 0
    assert runs.test(out) == 0
    return out


def test_a_test_measures_levels_and_the_whole_path_and_changes_nothing_else(
    run, table, student_run
):
    plain, measured = read_results(student_run), read_results(run)
    assert plain == {name: value for name, value in measured.items() if "level" not in name}
    for name in (
        "class_vectors.safetensors",
        "test_predictions.csv",
        "classifier/model.safetensors",
    ):
        assert (run / name).read_bytes() == (student_run / name).read_bytes()
    # the deepest level has the classes
    assert measured["test/level_2_acc"] == pytest.approx(measured["test/acc"], abs=1e-6)
    assert measured["test/level_1_acc"] > measured["test/level_path"]
    assert 0 <= measured["test/level_path"] <= measured["test/level_2_acc"]
    assert (run / FILE).read_text() == table.read_text()
    assert Classifier.load(run / "classifier").companions["taxonomy"].scores.shape == (198, 2)


def test_predict_names_the_deepest_node_after_calibration(run, tmp_path):
    folder = shutil.copytree(run / "classifier", tmp_path / "classifier")
    classifier, photos = Classifier.load(folder), tmp_path / "held_out"
    images = world.images_of(torch.arange(200), seed=3)
    # held-out images with the classes that are predicted
    for i, (image, (top,)) in enumerate(zip(images, classifier.predict([*images]), strict=True)):
        (photos / top.class_name).mkdir(parents=True, exist_ok=True)
        file = photos / top.class_name / f"{i}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    assert main(["calibrate", str(folder), str(photos)]) == 0
    some = [*map(str, sorted(photos.rglob("*.png"))[::60])]
    options = [f"--out={tmp_path}/table.csv", f"--explain={tmp_path}/why"]
    assert main(["predict", str(folder), *some, "--level-error=5%", *options]) == 0
    rows = runs.rows_of(tmp_path / "table.csv")
    assert list(rows[0]) == ["path", "class", "probability", "level", "error"]
    assert len(list((tmp_path / "why").iterdir())) == len(rows) == len(some)
    nodes = {"0": {""}, "1": {"one", *SHAPES} - {"digit"}, "2": {*PARENTS}}
    assert all(row["class"] in nodes[row["level"]] for row in rows)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--level-error=2%", "--max-error=2%"], ["--level-error", "--max-error"]),
        (["--level-error=0.1%"], ["198 held-out images"]),
        (["--level-error=99%", "--top-k=2"], ["--level-error", "--top-k"]),
    ],
)
def test_what_does_not_go_with_it_is_refused(options, words, run, tmp_path, capsys):
    runs.noise(32, 32).save(tmp_path / "0.png")
    capsys.readouterr()
    code = main(["predict", str(run / "classifier"), str(tmp_path / "0.png"), *options])
    runs.refused(capsys, code, *words)


def test_a_table_that_is_no_tree_ends_a_fit_before_training(tmp_path, teacher_folder):
    (tmp_path / "tree.csv").write_text("child,parent\nzero,digit\n")
    domain = world.digits(8, classes=ClassOptions(taxonomy=str(tmp_path / "tree.csv")))
    with world.refused(DataError, "lacks the class 'eight'"):
        world.fit(world.make_student(teacher_folder), tmp_path, 1, [world.NoStep()], domain=domain)


def test_a_tree_of_a_fit_that_was_given_up_is_not_taken_over(tmp_path, teacher_folder):
    (tmp_path / FILE).write_text("child,parent\nzero,digit\n")
    world.fit(world.make_student(teacher_folder), tmp_path, epochs=0, domain=world.digits(8))
    assert not (tmp_path / FILE).exists()
    # nor is there a sample of a pool that it did not learn from
    assert not (tmp_path / "classifier/pool_sample.safetensors").exists()


def test_the_report_has_the_accuracy_of_each_level(run, student_run, tmp_path):
    assert TREE.make(Run.find(student_run)) is None
    untested = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("test*"))
    with world.refused(ArtifactError, f"{untested} was not tested"):
        TREE.make(Run.find(untested))
    data = TREE.make(Run.find(run))
    accuracy = read_results(run)["test/level_1_acc"]
    assert data["accuracies"]["level 1"]["student"][0] == pytest.approx(accuracy)
    assert "teacher" not in data["accuracies"]["level 1"]
    assert "level 1" in fill(TREE.template.name, added={"taxonomy": TREE}, data=data)


@pytest.mark.slow
def test_a_test_on_two_processes_has_the_same_numbers(table, teacher_folder, tmp_path):
    two = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False}
    for name, options in (("one", {}), ("two", two)):
        domain = world.digits(8, classes=ClassOptions(taxonomy=str(table)))
        trainer = world.quiet_trainer(tmp_path / name, callbacks=[SaveTestResults()], **options)
        trainer.test(world.make_student(teacher_folder), datamodule=domain, verbose=False)
    assert "test/level_1_acc" in read_results(tmp_path / "one")
    assert read_results(tmp_path / "two") == read_results(tmp_path / "one")
