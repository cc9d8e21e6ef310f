import re

import pytest
import world
from runs import (
    DATA,
    SHORT,
    STUDENT,
    error_line,
    files_of,
    fit_student,
    fit_teacher,
    folder_fit,
    image_folder,
    rows_of,
)

from kdpl.__main__ import main
from kdpl.callbacks.throughput import Throughput
from kdpl.classifier import Classifier
from kdpl.runtime.loggers import MetricsCSV, read_metrics


def full(capsys, file):
    """The error of a full disk, which names this file."""
    return error_line(capsys, f"error: {file}: No space left on device: free some space")


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_and_the_fit_is_resumed(
    disk, teacher_run, student_run, capsys, monkeypatch
):
    out = disk.folder / "student"
    original = Throughput.on_train_batch_end

    def fill(self, trainer, *args):
        if trainer.current_epoch == 1:
            # a third of a checkpoint
            disk.fill(leave=100_000)
        return original(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_end", fill)
        assert fit_student(out, teacher_run) == 1
    last = out / "checkpoints" / "last.ckpt"
    assert re.search(rf" \(after 6 steps; {last} is kept\)$", full(capsys, last))
    assert [file.name for file in last.parent.iterdir()] == ["last.ckpt"]
    disk.free()
    assert fit_student(out, teacher_run) == 0
    weights = "classifier/model.safetensors"
    assert (out / weights).read_bytes() == (student_run / weights).read_bytes()


def test_class_vectors_and_a_classifier_that_do_not_fit_leave_those_before(disk, classifier):
    vectors = world.frozen_vectors(class_names=tuple(map(str, range(100))))
    for name, write, leave in (
        ("class_vectors.safetensors", vectors.save, 4_096),
        ("classifier", Classifier.load(classifier).save, 200_000),
    ):
        out = disk.folder / name
        for existing in (False, True):
            if existing:
                write(out)
            before = files_of(out.parent)
            disk.fill(leave)
            with pytest.raises(OSError, match="No space left on device") as error:
                write(out)
            disk.free()
            assert error.value.filename == str(out)
            assert files_of(disk.folder) == before, "nothing unfinished"


def test_a_report_that_does_not_fit_leaves_nothing(disk, student_run, capsys):
    out = disk.folder / "report.html"
    disk.fill(20_000)
    assert main(["report", str(student_run), f"--out={out}"]) == 1
    full(capsys, out)
    assert disk.names() == []


def test_metrics_that_do_not_fit_leave_complete_rows(disk):
    logger = MetricsCSV(str(disk.folder))
    logger.log_metrics({"train/loss": 0.5}, step=0)
    disk.fill()
    step = 0

    def log_on():
        nonlocal step
        for step in range(1, 1000):
            logger.log_metrics({"train/loss": step / 3}, step=step)

    with pytest.raises(OSError, match="No space left") as error:
        log_on()
    assert error.value.filename == str(disk.folder / "metrics.csv")
    assert [int(row["step"]) for row in rows_of(disk.folder / "metrics.csv")] == list(range(step))
    disk.free()
    logger.log_metrics({"train/loss": 7.0}, step=step)
    assert read_metrics(disk.folder / "metrics.csv")["train/loss"][-1] == (step, 7.0)


def test_a_folder_without_permission_is_named(read_only, tmp_path, classifier, capsys):
    folder = read_only(image_folder(tmp_path / "data"))
    assert fit_teacher(folder / "out") == 1
    error_line(capsys, str(folder / "out"), "Read-only file system: check path, permissions and disk")
    # what is only read needs no permission
    assert main(folder_fit(folder, tmp_path / "out")) == 0
    assert main(["predict", str(classifier), str(folder), f"--out={folder}/predictions.csv"]) == 1
    assert str(folder) in capsys.readouterr().err.splitlines()[-1]


def test_a_path_that_cannot_be_created_is_named(tmp_path, capsys, classifier):
    root, file = image_folder(tmp_path / "data"), tmp_path / "file"
    file.write_text("mine")
    for path in (file / "below", tmp_path / ("x" * 256)):
        for command in (
            folder_fit(root, path),
            ["init", str(root), f"--out={path}"],
            ["predict", str(classifier), str(root), f"--out={path}/answers.csv"],
        ):
            capsys.readouterr()
            assert main(command) == 1
            line = capsys.readouterr().err.splitlines()[-1]
            assert line.startswith(f"error: {path}"), line
            assert "Not a directory: check path" in line or "File name too long: check path" in line
    assert sorted(tmp_path.iterdir()) == [root, file]


def test_predictions_that_do_not_fit_are_resumed_and_each_image_is_there_once(disk, classifier, tmp_path, capsys):
    images = image_folder(tmp_path / f"{'x' * 200}", images=24)

    def predict(out):
        return main(["predict", str(classifier), str(images), f"--out={out}", "--batch-size=8", "--workers=1"])

    out = disk.folder / "predictions.csv"
    disk.fill(leave=20_000)
    assert predict(out) == 1
    full(capsys, f"{out}.partial")
    disk.free()
    assert predict(out) == 0
    assert f"{out.name}.partial" not in disk.names()
    assert predict(tmp_path / out.name) == 0
    assert out.read_bytes() == (tmp_path / out.name).read_bytes()


def test_a_teacher_cache_that_does_not_fit_is_resumed(disk, teacher_run, tmp_path, capsys):
    def fill(folder):
        settings = [*DATA, *STUDENT, *SHORT, f"--model.init_args.teacher={teacher_run}", "--out=unused"]
        return main(["cache", *settings, f"--data.init_args.teacher_cache={folder}", "--data.init_args.num_workers=0"])

    cache = disk.folder / "cache"
    disk.fill(leave=120_000)
    assert fill(cache) == 1
    full(capsys, cache / "shard-00000.npy")
    assert not list(cache.glob("*.npy"))
    disk.free()
    assert fill(cache) == 0
    assert fill(tmp_path / "cache") == 0
    (made,) = (tmp_path / "cache").glob("*.npy")
    assert (cache / made.name).read_bytes() == made.read_bytes()
