"""Runs in MLflow, in stores on this disk."""

import sys
from pathlib import Path

import pytest
import yaml
from runs import at_step, configs, error_line, fit_teacher, rows_of
from runs import test as run_test

from kdpl.callbacks.loggers.mlflow_logger import ID_FILE
from kdpl.callbacks.run_config import flatten
from kdpl.runtime.run_folder import CONFIG_FILE, METRICS_FILE

LOGGER = configs("logger/mlflow.yaml")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A client of the store that MLFLOW_TRACKING_URI names, from a folder where nothing else is."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    # not by the module, which each process of the tests imports
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    uri = f"file:{tmp_path}/mlruns"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(None)
    yield mlflow.MlflowClient(uri)
    mlflow.set_tracking_uri(None)


def runs_of(client):
    experiment = client.get_experiment_by_name("kdpl")
    return client.search_runs([experiment.experiment_id])


def test_an_interrupted_fit_its_resume_and_its_test_are_one_run_with_config_numbers_and_pictures(
    store, tmp_path
):
    out = tmp_path / "runs/teacher"

    def interrupt():
        raise KeyboardInterrupt

    with at_step(5, interrupt):
        assert fit_teacher(out, *LOGGER) == 130
    (run,) = runs_of(store)
    assert (run.info.run_name, run.info.status) == ("runs/teacher", "FAILED")
    given = flatten(yaml.safe_load((out / CONFIG_FILE).read_text()))
    # a setting that may change on resume, and which MLflow would not let change
    assert fit_teacher(out, *LOGGER, "--data.init_args.num_workers=1") == run_test(out) == 0
    assert (out / ID_FILE).read_text() == run.info.run_id
    (run,) = runs_of(store)
    assert run.info.status == "FINISHED"
    assert run.data.params["model/init_args/optim/lr"] == "0.002"
    workers = run.data.params["data/init_args/num_workers"]
    assert workers == str(given["data.init_args.num_workers"]) != "1"
    rows = rows_of(out / METRICS_FILE)
    for name in ("train/loss", "val/acc", "test/acc"):
        # those of steps after the checkpoint are logged again, with the same values
        history = store.get_metric_history(run.info.run_id, name)
        expected = {int(row["step"]): float(row[name]) for row in rows if row[name]}
        assert {metric.step: metric.value for metric in history} == pytest.approx(expected), name
        assert expected, name
    pictures = [Path(file.path).name for file in store.list_artifacts(run.info.run_id, "figures")]
    assert pictures == ["confusion.png"]


def test_a_store_that_fails_later_ends_the_log_and_not_the_training(
    store, tmp_path, monkeypatch, capsys
):
    def fail(*_, **__):
        raise ConnectionError("no route to host. And more.")

    with at_step(4, lambda: monkeypatch.setattr("mlflow.tracking.MlflowClient.log_batch", fail)):
        assert fit_teacher(tmp_path / "out", *LOGGER) == 0
    assert capsys.readouterr().err.count("MLflow stops logging (no route to host)") == 1
    (run,) = runs_of(store)
    steps = [
        int(row["step"]) for row in rows_of(tmp_path / "out" / METRICS_FILE) if row["train/loss"]
    ]
    kept = [metric.step for metric in store.get_metric_history(run.info.run_id, "train/loss")]
    assert kept == [step for step in steps if step < 4] != steps


@pytest.mark.parametrize("case", ["unknown run", "unknown scheme", "no package"])
def test_a_store_that_cannot_be_used_at_the_start_is_one_sentence(
    case, store, tmp_path, monkeypatch, capsys
):
    out, words = tmp_path / "out", ["MLflow cannot log to", "MLFLOW_TRACKING_URI", "mlflow_id"]
    if case == "unknown run":
        out.mkdir()
        (out / ID_FILE).write_text("0" * 32)
    elif case == "unknown scheme":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://host/runs")
    else:
        monkeypatch.setitem(sys.modules, "mlflow", None)
        words = ["pip install 'kdpl[mlflow]'"]
    assert fit_teacher(out, *LOGGER) == 1
    error_line(capsys, *words)
    assert not (out / METRICS_FILE).exists()
