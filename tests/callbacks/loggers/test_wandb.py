import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from PIL import Image
from runs import configs, fit_student, fit_teacher, rows_of
from runs import test as run_test

from kdpl.callbacks.loggers.wandb_logger import ID_FILE, RunWandbLogger
from kdpl.runtime.files import write_json
from kdpl.runtime.predictions import read_predictions, read_results
from kdpl.runtime.run_folder import (
    CHOICE_FILE,
    CLASS_VECTORS_FILE,
    CONFIG_FILE,
    DATA_FOLDER,
    ESTIMATE,
    ESTIMATED,
    METRICS_FILE,
)

LOGGER = configs("logger/wandb.yaml")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Let wandb work without a server, with its cache and configuration in a folder of the test."""
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HOME", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    # here, as each process of the tests imports the module
    import wandb

    # the client reads its environment once
    wandb.teardown()
    yield wandb
    wandb.teardown()


def _records(data):
    """The records of a W&B run file: a log of blocks of 32 KiB, over which a record may be split."""
    from wandb.proto import wandb_internal_pb2

    at, pieces, found = 7, b"", []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        pieces += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a complete record, or the last piece of one
            found.append(wandb_internal_pb2.Record.FromString(pieces))
            pieces = b""
    return found


def records_of(run, seconds=60):
    """The records of a run's processes by kind, once complete: the client writes them from a process of its own."""
    end, found = time.monotonic() + seconds, {}
    for file in sorted(run.rglob("*.wandb")):
        while "exit" not in {
            record.WhichOneof("record_type") for record in _records(file.read_bytes())[-3:]
        }:
            assert time.monotonic() < end, f"{file} was not closed"
            time.sleep(0.1)
        for record in _records(file.read_bytes()):
            kind = record.WhichOneof("record_type")
            found.setdefault(kind, []).append(getattr(record, kind))
    return found


def files_of(artifacts):
    """The files of artifacts, as the client keeps them until they are uploaded, by path."""
    entries = (entry for artifact in artifacts for entry in artifact.manifest.contents)
    return {entry.path: Path(entry.local_path) for entry in entries}


def values_of(items):
    """The values of items of a row or of a config by name, decoded."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def estimate_beside(run, value):
    """Keep an estimate of the images of a run beside it."""
    write_json(run / DATA_FOLDER / CHOICE_FILE, {"path": "my_images"})
    student = {"value": value, "interval": [value - 0.1, value + 0.1]}
    kept = {"path": "my_images", "student": student}
    write_json(run.with_name(f"my_images{ESTIMATE}") / ESTIMATED, kept)


def logged(run, name):
    return [float(row[name]) for row in rows_of(run / METRICS_FILE) if row[name]]


def test_a_fit_and_its_test_are_one_run_with_config_and_numbers(tmp_path, monkeypatch, teacher_run):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    student = tmp_path / "runs/student"
    estimate_beside(student.parent, 0.75)
    upload = "--trainer.logger.init_args.log_model=true"
    assert fit_student(student, teacher_run, *LOGGER, upload) == 0
    assert run_test(student, "--logged_images=5") == 0
    # nothing is written outside the runs' folders
    assert list((tmp_path / "work").iterdir()) == []
    found, number = records_of(student), (student / ID_FILE).read_text()
    names = {(run.run_id, run.project, run.display_name) for run in found["run"]}
    assert names == {(number, "kdpl", "runs/student")}
    updates = [values_of(config.update) for config in found["config"]]
    whole = [values for values in updates if "model" in values]
    config = yaml.safe_load((student / CONFIG_FILE).read_text())
    assert whole == [config], "the config is logged once"
    rows = [values_of(row.item) for row in found["history"]]
    for name in ("train/loss", "val/acc", "test/acc"):
        assert [row[name] for row in rows if name in row] == logged(student, name) != [], name
    assert logged(student, "test/acc") == [read_results(student)["test/acc"]]
    assert [row["estimate/acc"] for row in rows if "estimate/acc" in row] == [0.75]

    # the confusion matrix and the images with their predictions
    predictions, tables = read_predictions(student), files_of(found["artifact"])
    table = json.loads(tables["test/predictions.table.json"].read_text())
    shown = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    wrong = sorted((p for p in predictions if not p.correct), key=lambda p: -p.probability)
    assert [row["source"] for row in shown] == [p.source for p in wrong[:5]]
    for row, p in zip(shown, wrong, strict=False):
        assert (row["label"], row["prediction"]) == (p.label, p.prediction)
        with Image.open(tables[row["image"]["path"]]) as image:
            assert max(image.size) <= 160
    cells = json.loads(tables["test/confusion_matrix_table.table.json"].read_text())["data"]
    counts = Counter((p.label, p.prediction) for p in predictions)
    assert {(label, said): n for label, said, n in cells if n} == counts
    (chart,) = (item for item in found["config"] if "confusion_matrix" in str(item))
    assert "wandb/confusion_matrix/v1" in str(chart)

    # the classifier, and no second time with the test
    (artifact,) = (each for each in found["artifact"] if each.name == f"classifier-{number}")
    files = {entry.path for entry in artifact.manifest.contents}
    assert files == {file.name for file in (student / "classifier").iterdir()}


@pytest.mark.slow
def test_of_two_processes_one_logs_the_pictures_of_all_images(tmp_path, teacher_run):
    run = shutil.copytree(teacher_run, tmp_path / "run")
    options = ["--trainer.devices=2", "--trainer.strategy=ddp", "--logged_images=3"]
    command = ["test", f"--config={run}/config.yaml", f"--out={run}", *LOGGER, *options]
    # not forked, as processes of one parent that has imported wandb share its temporary folder
    environment = os.environ | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    python = [sys.executable, "-m", "kdpl", *command]
    done = subprocess.run(python, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = records_of(run)
    tables = [each.name for each in found["artifact"] if "predictions" in each.name]
    assert len(tables) == 1, tables
    files = files_of(found["artifact"])
    cells = json.loads(files["test/confusion_matrix_table.table.json"].read_text())["data"]
    assert sum(count for *_, count in cells) == read_results(run)["images"]
    assert len(json.loads(files["test/predictions.table.json"].read_text())["data"]) == 3


def test_disabled_it_logs_nothing_and_breaks_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert fit_teacher(tmp_path / "out", "--trainer.max_epochs=1", *LOGGER) == 0
    assert (tmp_path / "out" / CLASS_VECTORS_FILE).is_file()
    assert not list(tmp_path.rglob("*.wandb"))


def test_a_test_without_a_key_is_refused_before_any_image_is_read(
    offline, tmp_path, teacher_run, monkeypatch, capsys
):
    run, read = shutil.copytree(teacher_run, tmp_path / "run"), Mock()
    monkeypatch.setattr(offline, "init", Mock(side_effect=offline.UsageError("no API key")))
    monkeypatch.setattr("kdpl.data.readers.digits.Digits.read", read)
    assert run_test(run, f"--out={run}", *LOGGER) == 1
    assert "W&B cannot begin a run (no API key): " in capsys.readouterr().err
    assert not read.called


def test_project_name_and_id_of_the_environment_are_used_and_the_id_is_kept(tmp_path, monkeypatch):
    def settings_of(folder, **environment):
        for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        logger = RunWandbLogger(save_dir=str(folder))
        return logger._project, logger._name, logger._id

    given = {"WANDB_PROJECT": "pets", "WANDB_NAME": "third try", "WANDB_RUN_ID": "r7"}
    assert settings_of(tmp_path / "a/b", **given) == ("pets", "third try", "r7")
    assert settings_of(tmp_path / "a/b") == ("kdpl", "a/b", "r7")
    assert settings_of(tmp_path / "a/b", WANDB_RUN_ID="other")[2] == "r7"
    assert settings_of(tmp_path / "c")[2] not in (None, "r7")
