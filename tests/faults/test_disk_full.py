import re
import shutil
from itertools import count

import pytest
from runs import at_step, error_line, fit_student, image_folder, rows_of

from kdpl.__main__ import main
from kdpl.runtime.loggers import MetricsCSV, read_metrics


@pytest.fixture
def disk(tmp_path, mounted):
    """An empty disk of 8 MB."""
    return mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=8m", "tmpfs")


def fill(disk, leave=0):
    """Take all space but so many bytes; returns the file that takes it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while (free := shutil.disk_usage(disk).free - leave) >= 4096:
            file.write(bytes(min(free, 2**20)))
    return ballast


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_and_the_fit_is_resumed(
    disk, teacher_run, student_run, capsys
):
    out = disk / "student"
    last = out / "checkpoints" / "last.ckpt"
    # a third of a checkpoint
    with at_step(6, lambda: fill(disk, leave=100_000)):
        assert fit_student(out, teacher_run) == 1
    error_line(capsys, f"error: {last}: No space left", f"(after 6 steps; {last} is kept)")
    assert [file.name for file in last.parent.iterdir()] == ["last.ckpt"]
    (disk / "ballast").unlink()
    assert fit_student(out, teacher_run) == 0
    weights = "classifier/model.safetensors"
    assert (out / weights).read_bytes() == (student_run / weights).read_bytes()


def test_metrics_that_do_not_fit_leave_complete_rows_to_the_next_start(disk):
    logger, file, steps = MetricsCSV(str(disk)), disk / "metrics.csv", count(1)
    logger.log_metrics({"train/loss": 0.5}, step=0)
    ballast = fill(disk)
    with pytest.raises(OSError, match="No space left") as error:
        [logger.log_metrics({"train/loss": step / 3}, step=step) for step in steps]
    assert error.value.filename == str(file)
    step = next(steps) - 1
    ballast.unlink()
    MetricsCSV(str(disk)).log_metrics({"train/loss": 7.0}, step=step)
    assert [int(row["step"]) for row in rows_of(file)] == [*range(step + 1)]
    assert read_metrics(file)["train/loss"][-1] == (step, 7.0)


def test_predictions_that_do_not_fit_are_resumed_and_each_image_is_there_once(
    disk, classifier, tmp_path, capsys
):
    images = image_folder(tmp_path / f"{'x' * 200}", images=24)

    def predict(out):
        options = ["--batch-size=8", "--workers=1", f"--out={out}"]
        return main(["predict", str(classifier), str(images), *options])

    out = disk / "predictions.csv"
    ballast = fill(disk, leave=20_000)
    assert predict(out) == 1
    error_line(capsys, f"error: {out}.partial: No space left on device: free some space")
    ballast.unlink()
    assert predict(out) == 0
    (done,) = re.findall(r"resuming after (\d+) images", capsys.readouterr().err)
    assert int(done) in range(8, 96, 8), "whole batches"
    assert [file.name for file in disk.iterdir()] == [out.name]
    assert predict(tmp_path / out.name) == 0
    assert out.read_bytes() == (tmp_path / out.name).read_bytes()
