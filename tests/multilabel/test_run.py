"""A whole run on several labels an image, resumed and on several processes; its report, and its classifier."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import world
from pages import NAMES, OF_PAGES, data_of, make_teacher, pages, write_table
from rich.console import Console
from runs import CONFIGS, DATA, SHORT, STAGES, STUDENT, error_line, rows_of

from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.callbacks.results import SaveTestResults
from kdpl.cli.run_summary import summarize
from kdpl.data.datasets import label_tensor
from kdpl.data.sampling import spread
from kdpl.errors import ArtifactError, ConfigError
from kdpl.multilabel import scores
from kdpl.multilabel.report import several_labels
from kdpl.report.run_folder import Run
from kdpl.runtime.predictions import read_predictions, read_results


def test_a_run_tests_all_four_models_by_average_precision_and_f1(run):
    names = {"map", "chance", "macro_f1", "micro_f1"}
    halves = {f"{half}_{name}" for half in ("base", "novel") for name in names}
    for stage in ("teacher", "student", "zero_shot/teacher", "zero_shot/student"):
        results = read_results(run / stage)
        assert results.pop("images") == 24
        assert {name.removeprefix("test/") for name in results} == {"hm", *names, *halves}
        assert all(0 <= value <= 1 for value in results.values())


def test_a_run_prints_chance_and_probes(run, capsys):
    summarize(Console(width=200), run, nothing_done=True)
    said = capsys.readouterr().out
    rows = {
        cells[0].strip(): cells[1:] for line in said.splitlines() if (cells := line.split("│")[1:])
    }
    chance = read_results(run / "student")
    shares = [f"{100 * chance[f'test/{half}chance']:.1f}" for half in ("", "base_", "novel_")]
    assert [cell.strip() for cell in rows["chance"][:3]] == shares
    for role, title in (("teacher", "the teacher's CLIP"), ("student", "the student's network")):
        # of base classes alone, whose labels it has
        precision = read_results(run / "probe" / role)["test/base_map"]
        shown = rows[f"linear probe of {title}"]
        assert [cell.strip() for cell in shown[:3]] == ["", f"{100 * precision:.1f}", ""]


def test_the_predictions_of_a_test_are_those_of_the_classifier_and_not_one_class_each(run, table):
    with pytest.raises(ArtifactError, match="several labels an image"):
        read_predictions(run / "student")
    assert main(["compare", str(run / "student"), str(run / "teacher")]) != 0

    predictions = rows_of(run / "student" / "test_predictions.csv")
    assert [int(row["index"]) for row in predictions] == list(range(24))
    labels = {str(table.parent / row["image"]): row["label"].strip(";") for row in rows_of(table)}
    assert all(row["labels"] == labels[row["source"]] for row in predictions)

    classifier = Classifier.load(run / "student" / "classifier")
    predicted = classifier.predict([row["source"] for row in predictions])
    named = [sorted(label.class_name for label in image) for image in predicted]
    assert named == [sorted(filter(None, row["predicted"].split(";"))) for row in predictions]

    per_class = rows_of(run / "student" / "per_class.csv")
    assert [row["class"] for row in per_class] == [*NAMES]
    thresholds = [float(row["threshold"]) for row in per_class]
    assert thresholds == pytest.approx(classifier.task.thresholds)
    average = sum(float(row["ap"]) for row in per_class) / 5
    assert read_results(run / "student")["test/map"] == pytest.approx(average, abs=1e-5)


def test_the_report_shows_what_was_tested_instead_of_accuracies(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    headings = ("Several labels", "Classes", "Which classes are predicted with which", "Images")
    assert all(f">{heading}</h" in page for heading in headings)
    for other in ("Confusions", "Accuracy by class", "Calibration", "validation accuracy"):
        assert other not in page
    assert page.count("data:image/webp") == 12
    assert "validation mAP, %" in page
    # mAP stands in the tiles
    tiles = dict(re.findall(r'class="tile"><b class="(\w+)">([\d.]+) %</b>mAP of', page))
    results = {role: read_results(run / role)["test/map"] for role in ("teacher", "student")}
    results["chance"] = read_results(run / "student")["test/chance"]
    assert tiles == {role: f"{100 * share:.1f}" for role, share in results.items()}

    data = several_labels(Run.find(run))
    assert data["images"] == 24
    assert len(data["models"]) == 7
    for row, (low, high) in data["classes"]:
        assert low - 0.02 < float(row["ap"]) <= high
    together, having = np.array(data["together"]), np.array(data["having"])
    assert (together <= having[:, None]).all()
    assert having.tolist() == [int(row["positives"]) for row, _ in data["classes"]]


def test_the_script_without_torch_names_the_same_labels(run, table, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    folder = run / "student" / "classifier"
    file = tmp_path / "classifier.onnx"
    assert main(["export", str(folder), "--format=onnx", f"--out={file}"]) == 0
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    script = page.partition("## Classify without torch")[2].partition("```python\n")[2]
    images = [table.parent / f"test{number}.png" for number in range(3)]
    monkeypatch.chdir(tmp_path)
    for image, predicted in zip(images, Classifier.load(folder).predict(images), strict=True):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["script.py", str(image)])
        exec(compile(script.partition("```")[0], "export.md", "exec"), {})  # noqa: S102
        named = sorted(filter(None, capsys.readouterr().out.splitlines()[1].split(";")))
        assert named == sorted(label.class_name for label in predicted)


def test_a_classifier_with_thresholds_of_other_classes_is_refused(several, tmp_path):
    folder = shutil.copytree(several, tmp_path / "classifier")
    config = json.loads((folder / "classifier.json").read_text())
    for task in ({"thresholds": [0.5]}, {"limits": [0.5] * 5}, {"thresholds": ["high"] * 5}):
        (folder / "classifier.json").write_text(json.dumps({**config, "task": task}))
        with pytest.raises(ArtifactError, match="task"):
            Classifier.load(folder)


def test_teachers_and_data_of_different_tasks_are_refused(run, table, tmp_path, capsys):
    rows = [(table.parent / f"train{i}.png", name) for i, name in enumerate(NAMES)]
    root = write_table(tmp_path / "one.csv", ("image", "label"), *rows)
    data = [option for option in data_of(root) if ".classes." not in option]
    student = [f"--model.init_args.teacher={run}/teacher", f"--out={tmp_path}/student"]
    config = f"--config={CONFIGS}/trainer/cpu.yaml"
    assert main(["fit", config, *STUDENT, *data, *SHORT, *student]) == 1
    error_line(capsys, "are for multilabel labels")


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ("local_views", "local_views is for images of several labels"),
        ("refined", "refined is defined for images of one class each"),
    ],
)
def test_what_does_not_fit_the_task_is_refused_early(student, words, table, tmp_path, capsys):
    several = [f"--config={CONFIGS}/trainer/cpu.yaml", *data_of(table)]
    options = [*(DATA if student == "local_views" else several), *STAGES, f"--student={student}"]
    assert main(["run", *options, *SHORT, f"--out={tmp_path}/run"]) == 1
    error_line(capsys, words)
    assert not (tmp_path / "run" / "teacher").exists()


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_a_resumed_fit_of_either_stage_ends_with_the_same_weights(stage, table, tmp_path):
    world.write_teacher(tmp_path, **OF_PAGES)

    def fit(name, **options):
        module = make_teacher() if stage == "teacher" else world.make_student(tmp_path)
        data = pages(table, batch_size=4)
        world.fit(module, tmp_path / name, 2, domain=data, limit_train_batches=3, **options)
        return module.state_dict()

    whole = fit("whole", save=True)
    resumed = fit("resumed", ckpt_path=tmp_path / "whole" / "epoch=0.ckpt")
    assert whole.keys() == resumed.keys()
    assert all(whole[name].equal(resumed[name]) for name in whole)
    assert whole["scores.center"].any()


@pytest.mark.slow
def test_a_test_on_two_processes_has_the_same_numbers_and_tables(table, tmp_path):
    world.write_teacher(tmp_path, **OF_PAGES)
    folders = [tmp_path / "1", tmp_path / "2"]
    for processes, folder in enumerate(folders, start=1):
        options = {"devices": processes, "strategy": "ddp_fork"} if processes > 1 else {}
        options |= {"callbacks": [SaveTestResults()], "use_distributed_sampler": False}
        module = world.make_student(tmp_path)
        trainer = world.quiet_trainer(folder, **options)
        trainer.test(module, datamodule=pages(table), verbose=False)
    assert read_results(folders[1]) == pytest.approx(read_results(folders[0]), abs=1e-6)
    # batches of other sizes round differently
    rows, other_rows = (rows_of(folder / "test_predictions.csv") for folder in folders)
    for column in ("index", "labels", "predicted"):
        assert [row[column] for row in other_rows] == [row[column] for row in rows]


def test_the_service_returns_labels_and_scores(several, table):
    pytest.importorskip("litserve")
    from serve.test_serve import worker

    files = [table.parent / f"test{i}.png" for i in range(3)]
    (rows,) = worker(str(several)).predict([[(path.name, path.read_bytes()) for path in files]])
    for path, row, labels in zip(files, rows, Classifier.load(several).predict(files), strict=True):
        assert row["path"] == path.name
        assert row["labels"] == ";".join(label.class_name for label in labels)
        assert row["scores"].count(";") == max(0, len(labels) - 1)


def fit(table, folder, *callbacks):
    module, data = make_teacher(), pages(table)
    trainer = world.quiet_trainer(folder, 1, callbacks=[*callbacks], limit_train_batches=1)
    trainer.fit(module, datamodule=data)
    return module, data, trainer


def test_scores_are_fitted_to_labelled_images_from_all_over_the_list(table, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(scores.ScaleAndBias, "fit", lambda _, *given: seen.append(given[1]))
    monkeypatch.setattr(scores, "_STARTING_LABELS", 10)
    sent, yes = [], dict.fromkeys(("is_available", "is_initialized"), lambda: True)
    group = SimpleNamespace(broadcast=lambda _, src: sent.append(src), **yes)
    monkeypatch.setattr(scores, "distributed", group)
    _, data, _ = fit(table, tmp_path)
    assert sent == [0, 0, 0], "every process starts at the scores of the first"
    training = data.labels.training()
    assert len(training) > 10
    expected = [label_tensor(record.label, 5) for record in spread(training, 10)]
    assert torch.stack(expected).equal(seen[0])


def test_a_test_or_fit_after_a_fit_keeps_what_scores_were_learned(table, tmp_path, monkeypatch):
    module, data, trainer = fit(table, tmp_path)
    # a teacher hands no thresholds over
    assert module.task.thresholds is None
    learned = {name: value.clone() for name, value in module.scores.state_dict().items()}
    trainer.test(module, datamodule=data, verbose=False)
    assert all(value.equal(learned[name]) for name, value in module.scores.state_dict().items())

    monkeypatch.setattr(scores.ScaleAndBias, "fit", None)
    again = world.quiet_trainer(tmp_path / "more", 1, limit_train_batches=1)
    again.fit(module, datamodule=pages(table))
    assert module.scores.center.equal(learned["center"])


def test_the_published_choice_of_an_epoch_is_refused(table, tmp_path):
    choice = pytest.importorskip("kdpl.benchmark.choice")
    with world.refused(ConfigError, "BestOnBaseTest is defined for images of one class each"):
        fit(table, tmp_path, choice.BestOnBaseTest())


def test_scores_learn_as_if_the_loss_had_no_weight(table, tmp_path):
    world.write_teacher(tmp_path, **OF_PAGES)
    gradients = []
    for weight in (1, 1000):
        student = world.make_student(tmp_path, kd_weight=weight)
        options = {"domain": pages(table), "limit_train_batches": 1}
        made = world.fit(student, tmp_path / f"{weight}", **options).gradients
        gradients.append([made[f"scores.{name}"] for name in ("log_scale", "bias")])
    for once, weighted in zip(*gradients, strict=True):
        torch.testing.assert_close(weighted, once)
