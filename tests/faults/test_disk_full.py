import re

import pytest
import world
from PIL import Image
from runs import DATA, SHORT, STUDENT, files_of, fit_student, rows_of

from kdpl.__main__ import main
from kdpl.callbacks.throughput import Throughput
from kdpl.classifier import Classifier
from kdpl.runtime.loggers import MetricsCSV, read_metrics


def says_full(capsys, file):
    """Whether the last line on stderr says that there is no space for this file, and what to do."""
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {file}: No space left on device: free some space"), line
    return line


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_and_the_run_ends_as_an_uncut_one(
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
    assert re.search(rf" \(after 6 steps; {last} is kept\)$", says_full(capsys, last))
    assert [file.name for file in last.parent.iterdir()] == ["last.ckpt"]
    disk.free()
    assert fit_student(out, teacher_run) == 0
    assert f"going on from {last}" in capsys.readouterr().err
    weights = "classifier/model.safetensors"
    assert (out / weights).read_bytes() == (student_run / weights).read_bytes()


def test_class_vectors_and_a_classifier_that_do_not_fit_leave_those_before(disk, classifier):
    vectors = world.frozen_vectors(class_names=tuple(map(str, range(100))))
    for name, write, leave in (
        ("class_vectors.safetensors", vectors.save, 4_096),
        ("classifier", Classifier.load(classifier).save, 200_000),
    ):
        out = disk.folder / name
        for there in (False, True):
            if there:
                write(out)
            before = files_of(out.parent)
            disk.fill(leave)
            with pytest.raises(OSError, match="No space left on device") as error:
                write(out)
            disk.free()
            assert error.value.filename == str(out)
            assert files_of(disk.folder) == before, "nothing half-written"


@pytest.mark.parametrize(
    ("command", "name", "leave"),
    [(["export", "--format=onnx"], "model.onnx", 200_000), (["report"], "report.html", 20_000)],
    ids=["export", "report"],
)
def test_a_command_whose_file_does_not_fit_leaves_nothing_and_says_which(
    command, name, leave, disk, student_run, capsys
):
    out = disk.folder / name
    disk.fill(leave)
    source = student_run / "classifier" if command[0] == "export" else student_run
    assert main([command[0], str(source), *command[1:], f"--out={out}"]) == 1
    says_full(capsys, out)
    assert disk.names() == []


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures with names so long that a few answers fill a disk."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(96):
        Image.new("RGB", (12, 10), (2 * i, 255 - 2 * i, 9 * i % 256)).save(folder / f"{i:02}{'x' * 200}.png")
    return folder


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_predictions_that_do_not_fit_go_on_and_each_image_is_there_once(
    ending, disk, classifier, pictures, tmp_path, capsys
):
    def predict(out):
        return main(["predict", str(classifier), str(pictures), f"--out={out}", "--batch-size=8", "--workers=1"])

    out, partial = disk.folder / f"answers.{ending}", disk.folder / f"answers.{ending}.partial"
    disk.fill(leave=20_000)
    assert predict(out) == 1
    says_full(capsys, partial)
    content = partial.read_bytes()
    assert 8 <= content.count(b"\n") < 96
    assert content.endswith(b"}\n"), "whole lines alone"
    disk.free()
    assert predict(out) == 0
    assert f"resuming after {content.count(b'}')} images" in capsys.readouterr().err
    assert not partial.exists()
    assert predict(tmp_path / out.name) == 0
    assert out.read_bytes() == (tmp_path / out.name).read_bytes()


def test_a_table_of_predictions_that_does_not_fit_is_made_from_the_answers_later(
    disk, classifier, pictures, tmp_path, capsys, monkeypatch
):
    from kdpl.deploy import tables

    out = disk.folder / "answers.csv"
    args = ["predict", str(classifier), str(pictures), f"--out={out}", "--batch-size=8", "--workers=1"]
    original = tables.write_table

    def full(*more):
        disk.fill(leave=8_192)
        original(*more)

    with monkeypatch.context() as patch:
        patch.setattr(tables, "write_table", full)
        assert main(args) == 1
    says_full(capsys, out)
    assert disk.names() == [".answers.csv.lock", "answers.csv.job.json", "answers.csv.partial"]
    disk.free()
    assert main(args) == 0
    assert "resuming after 96 images" in capsys.readouterr().err
    assert len(rows_of(out)) == 96


def test_filling_a_teacher_cache_that_did_not_fit_is_resumed(disk, teacher_run, tmp_path, capsys):
    def fill(folder):
        settings = [*DATA, *STUDENT, *SHORT, f"--model.init_args.teacher={teacher_run}", "--out=unused"]
        return main(["cache", *settings, f"--data.init_args.teacher_cache={folder}", "--data.init_args.num_workers=0"])

    cache = disk.folder / "cache"
    disk.fill(leave=120_000)
    assert fill(cache) == 1
    says_full(capsys, cache / "shard-00000.npy")
    assert not list(cache.glob("*.npy"))
    disk.free()
    assert fill(cache) == 0
    assert fill(tmp_path / "cache") == 0
    (made,) = (tmp_path / "cache").glob("*.npy")
    assert (cache / made.name).read_bytes() == made.read_bytes()


def test_metrics_that_do_not_fit_leave_whole_rows(disk):
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
    rows = rows_of(disk.folder / "metrics.csv")
    assert len(rows) == step
    assert [int(row["step"]) for row in rows] == list(range(step))
    disk.free()
    logger.log_metrics({"train/loss": 7.0}, step=step)
    assert read_metrics(disk.folder / "metrics.csv")["train/loss"][-1] == (step, 7.0)


def test_a_half_written_row_of_metrics_is_cut_off_by_the_next_start(tmp_path):
    MetricsCSV(str(tmp_path)).log_metrics({"train/loss": 0.5}, step=0)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1,0.2")
    MetricsCSV(str(tmp_path)).log_metrics({"train/loss": 0.25}, step=1)
    assert read_metrics(tmp_path / "metrics.csv") == {"train/loss": [(0, 0.5), (1, 0.25)]}
