"""A whole run on several labels an image, and the use of its classifier."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from runs import CONFIGS, SHORT, STAGES, STUDENT, curves_of

from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.class_vectors import ClassVectors
from kdpl.cli.run_summary import summarize
from kdpl.errors import ArtifactError
from kdpl.runtime.predictions import read_predictions, read_results

NAMES = ("four", "one", "three", "two", "zero")


def rows_of(path):
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_run_tests_all_four_models_by_average_precision_and_f1(run):
    names = {"map", "chance", "macro_f1", "micro_f1"}
    halves = {f"{half}_{name}" for half in ("base", "novel") for name in names}
    for stage in ("teacher", "student", "zero_shot/teacher", "zero_shot/student"):
        results = read_results(run / stage)
        assert results.pop("images") == 24
        assert {name.removeprefix("test/") for name in results} == {"hm", *names, *halves}
        assert all(0 <= value <= 1 for value in results.values())


def test_a_run_prints_chance_probes_and_agreement_with_its_targets(run, capsys):
    console = Console(width=200)
    summarize(console, run, nothing_done=True)
    said = capsys.readouterr().out
    rows = {
        cells[0].strip(): cells[1:] for line in said.splitlines() if (cells := line.split("│")[1:])
    }
    chance = read_results(run / "student")
    shares = [f"{100 * chance[f'test/{half}chance']:.1f}" for half in ("", "base_", "novel_")]
    assert [cell.strip() for cell in rows["chance"][:3]] == shares
    for role, title in (("teacher", "the teacher's CLIP"), ("student", "the student's network")):
        # of base classes alone, whose labels it has
        (precision,) = (read_results(run / "probe" / role)[key] for key in ("test/base_map",))
        shown = rows[f"linear probe of {title}"]
        assert [cell.strip() for cell in shown[:3]] == ["", f"{100 * precision:.1f}", ""]
    share = curves_of(run / "student")["train/agreement"][-1][1]
    assert f"agrees with its targets on {100 * share:.1f} % of the classes" in said
    assert ("it cannot follow them" in said) == (share < 0.5)


def test_scale_and_bias_are_learned_and_novel_classes_have_the_mean_of_base_ones(run):
    vectors = ClassVectors.load(run / "student" / "class_vectors.safetensors")
    assert vectors.task == "multilabel"
    assert len({*vectors.scales[:3]}) == 3
    mean = math.exp(sum(map(math.log, vectors.scales[:3])) / 3)
    assert vectors.scales[3:] == pytest.approx((mean, mean), rel=1e-5)


def test_the_predictions_of_a_test_are_those_of_the_classifier(run, table):
    predictions = rows_of(run / "student" / "test_predictions.csv")
    assert [int(row["index"]) for row in predictions] == list(range(24))
    known = {str(table.parent / row["image"]): row["label"] for row in rows_of(table)}
    assert all(row["labels"] == known[row["source"]] for row in predictions)

    classifier = Classifier.load(run / "student" / "classifier")
    assert len(classifier.task.thresholds) == 5
    predicted = classifier.predict([row["source"] for row in predictions])
    named = [sorted(each.class_name for each in one) for one in predicted]
    assert named == [sorted(filter(None, row["predicted"].split(";"))) for row in predictions]

    per_class = rows_of(run / "student" / "per_class.csv")
    assert [row["class"] for row in per_class] == [*NAMES]
    thresholds = [float(row["threshold"]) for row in per_class]
    assert thresholds == pytest.approx(classifier.task.thresholds)
    average = sum(float(row["ap"]) for row in per_class) / 5
    assert read_results(run / "student")["test/map"] == pytest.approx(average, abs=1e-5)


def test_what_reads_one_class_for_each_image_refuses_the_predictions(run):
    with pytest.raises(ArtifactError, match="several labels an image"):
        read_predictions(run / "student")
    assert main(["compare", str(run / "student"), str(run / "teacher")]) != 0


def test_predict_writes_names_and_probabilities(run, table, tmp_path):
    folder = run / "student" / "classifier"
    assert (
        main(["predict", str(folder), str(table.parent / "test0.png"), f"--out={tmp_path}/p.csv"])
        == 0
    )
    row = rows_of(tmp_path / "p.csv")[0]
    assert [*row] == ["path", "labels", "scores", "error"]
    assert row["labels"].count(";") == row["scores"].count(";")
    for option in ("--max-error=0.1", "--unknown", "--sets=0.9", "--calibrated"):
        assert main(["predict", str(folder), str(table), option]) != 0


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The classifier as ONNX."""
    pytest.importorskip("onnxruntime")
    file = tmp_path_factory.mktemp("exported") / "classifier.onnx"
    folder = run / "student" / "classifier"
    assert main(["export", str(folder), "--format=onnx", f"--out={file}"]) == 0
    return file


def test_an_exported_file_has_the_labels_of_the_classifier(run, table, exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = run / "student" / "classifier"
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert about["task"] == "multilabel"
    names, thresholds = json.loads(about["class_names"]), json.loads(about["label_thresholds"])

    classifier = Classifier.load(folder)
    paths = [table.parent / row["image"] for row in rows_of(table) if row["split"] == "test"]
    images = torch.stack([classifier.prepare(Image.open(path)) for path in paths])
    _, probabilities = session.run(None, {"images": images.numpy()})
    for own, predicted in zip(probabilities.tolist(), classifier.predict(paths), strict=True):
        exported = [name for name, p, t in zip(names, own, thresholds, strict=True) if p >= t]
        assert sorted(exported) == sorted(each.class_name for each in predicted)


def test_a_classifier_with_thresholds_of_other_classes_is_refused(run, tmp_path):
    folder = tmp_path / "classifier"
    Classifier.load(run / "student" / "classifier").save(folder)
    config = json.loads((folder / "classifier.json").read_text())
    for task in ({"thresholds": [0.5]}, {"limits": [0.5] * 5}, {"thresholds": ["high"] * 5}):
        (folder / "classifier.json").write_text(json.dumps({**config, "task": task}))
        with pytest.raises(ArtifactError, match="task"):
            Classifier.load(folder)


def test_the_script_without_torch_names_the_same_labels(run, table, exported):
    folder = run / "student" / "classifier"
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    script = page.partition("## Classify without torch")[2].partition("```python\n")[2]
    (exported.parent / "script.py").write_text(script.partition("```")[0])
    classifier = Classifier.load(folder)
    for number in range(3):
        image = table.parent / f"test{number}.png"
        said = subprocess.run(
            [sys.executable, "script.py", image],
            cwd=exported.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        (predicted,) = classifier.predict([image])
        named = sorted(filter(None, said.stdout.splitlines()[1].split(";")))
        assert named == sorted(each.class_name for each in predicted)


def test_without_a_label_the_student_learns_the_original_clip_and_an_image_is_of_what_it_is_most_like(
    table, data_of, tmp_path
):
    config = f"--config={CONFIGS}/trainer/cpu.yaml"
    options = [config, *data_of(table, "--data.init_args.shots=0")]
    assert main(["run", *options, *STAGES, *SHORT, f"--out={tmp_path}/run"]) == 0
    assert {"test/map", "test/macro_f1"} < read_results(tmp_path / "run" / "student").keys()
    vectors = ClassVectors.load(tmp_path / "run" / "teacher" / "class_vectors.safetensors")
    assert vectors.scales == (1.0,) * 5
    assert all(bias < 0 for bias in vectors.biases)
    thresholds = Classifier.load(tmp_path / "run" / "student" / "classifier").task.thresholds
    assert len({*thresholds}) == 5
    assert all(0 < threshold < 1 for threshold in thresholds)


def test_teachers_and_data_of_different_tasks_are_refused(run, table, tmp_path, capsys):
    student = [f"--model.init_args.teacher={run}/teacher", f"--out={tmp_path}/student"]
    data = [
        "--data.class_path=kdpl.DomainDataModule",
        "--data.init_args.dataset=table",
        f"--data.init_args.root={tmp_path}/one.csv",
    ]
    rows = [(table.parent / f"train{i}.png", name) for i, name in enumerate(NAMES)]
    lines = [f"{path},{name}" for path, name in rows]
    (tmp_path / "one.csv").write_text("\n".join(["image,label", *lines]))
    config = f"--config={CONFIGS}/trainer/cpu.yaml"
    assert main(["fit", config, *STUDENT, *data, *SHORT, *student]) != 0
    assert (
        "are for multilabel labels, but the labels of the data are multiclass"
        in capsys.readouterr().err
    )


def test_local_views_of_one_class_for_each_image_are_refused_before_stage_1(tmp_path, capsys):
    config = [f"--config={CONFIGS}/{name}.yaml" for name in ("data/digits", "trainer/cpu")]
    options = [*config, *STAGES, "--student=local_views", *SHORT]
    assert main(["run", *options, f"--out={tmp_path}/run"]) != 0
    assert "local_views is for images of several labels" in capsys.readouterr().err
    assert not (tmp_path / "run" / "teacher").exists()


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ("--student=refined", "target: refined is defined for images of one class each"),
        ("--student=feature_l1", "loss.kind l1 compares features"),
    ],
)
def test_what_several_labels_do_not_go_with_is_refused_before_stage_1(
    student, said, table, data_of, tmp_path, capsys
):
    config = f"--config={CONFIGS}/trainer/cpu.yaml"
    options = [config, *data_of(table), *STAGES, student, *SHORT]
    assert main(["run", *options, f"--out={tmp_path}/run"]) != 0
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "teacher").exists()
