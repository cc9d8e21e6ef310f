import re
from itertools import count

import pytest
import world
from runs import at_step, error_line, files_of, fit_student, image_folder, rows_of

from kdpl.__main__ import main
from kdpl.classifier import Classifier
from kdpl.runtime.loggers import MetricsCSV, read_metrics


def full(capsys, file):
    """The error of a full disk, which names this file."""
    return error_line(capsys, f"error: {file}: No space left on device: free some space")


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_and_the_fit_is_resumed(
    disk, teacher_run, student_run, capsys
):
    out = disk.folder / "student"
    # a third of a checkpoint
    with at_step(6, lambda: disk.fill(leave=100_000)):
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


def test_metrics_that_do_not_fit_leave_complete_rows_to_the_next_start(disk):
    logger = MetricsCSV(str(disk.folder))
    logger.log_metrics({"train/loss": 0.5}, step=0)
    disk.fill()
    steps = count(1)
    with pytest.raises(OSError, match="No space left") as error:
        [logger.log_metrics({"train/loss": step / 3}, step=step) for step in steps]
    assert error.value.filename == str(disk.folder / "metrics.csv")
    step = next(steps) - 1
    disk.free()
    MetricsCSV(str(disk.folder)).log_metrics({"train/loss": 7.0}, step=step)
    assert [int(row["step"]) for row in rows_of(disk.folder / "metrics.csv")] == [*range(step + 1)]
    assert read_metrics(disk.folder / "metrics.csv")["train/loss"][-1] == (step, 7.0)


def test_predictions_that_do_not_fit_are_resumed_and_each_image_is_there_once(
    disk, classifier, tmp_path, capsys
):
    images = image_folder(tmp_path / f"{'x' * 200}", images=24)

    def predict(out):
        options = ["--batch-size=8", "--workers=1", f"--out={out}"]
        return main(["predict", str(classifier), str(images), *options])

    out = disk.folder / "predictions.csv"
    disk.fill(leave=20_000)
    assert predict(out) == 1
    full(capsys, f"{out}.partial")
    disk.free()
    assert predict(out) == 0
    (done,) = re.findall(r"resuming after (\d+) images", capsys.readouterr().err)
    assert int(done) in range(8, 96, 8), "whole batches"
    assert not (disk.folder / f"{out.name}.partial").exists()
    assert predict(tmp_path / out.name) == 0
    assert out.read_bytes() == (tmp_path / out.name).read_bytes()
