"""Runs in MLflow, in a store on this disk."""

import pytest
import yaml
from runs import at_step, configs, error_line, fit_teacher, rows_of
from runs import test as run_test

from kdpl.runtime.configs import read_config
from kdpl.runtime.run_folder import METRICS_FILE


# importing it takes seconds
@pytest.mark.slow
def test_an_interrupted_fit_its_resume_and_its_test_are_three_runs_with_config_and_numbers(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    # not by the module, which each process of the tests imports
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    uri = f"file:{tmp_path}/mlruns"
    config = read_config(configs("logger/mlflow.yaml")[0].removeprefix("--config="))
    # Lightning reads MLFLOW_TRACKING_URI when it is imported
    config["trainer"]["logger"][-1]["init_args"]["tracking_uri"] = uri
    (tmp_path / "mlflow.yaml").write_text(yaml.safe_dump(config))
    out, logger = tmp_path / "out", f"--config={tmp_path / 'mlflow.yaml'}"

    def interrupt():
        raise KeyboardInterrupt

    with at_step(5, interrupt):
        assert fit_teacher(out, logger) == 130
    assert fit_teacher(out, logger, "--data.init_args.num_workers=1") == run_test(out) == 0
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("kdpl").experiment_id
    first, resumed, tested = client.search_runs([experiment], order_by=["attributes.start_time"])
    statuses = [run.info.status for run in (first, resumed, tested)]
    assert statuses == ["FAILED", "FINISHED", "FINISHED"]
    assert resumed.data.params["model/init_args/optim/lr"] == "0.002"
    assert resumed.data.params["data/init_args/num_workers"] == "1"
    for run, name in ((resumed, "train/loss"), (resumed, "val/acc"), (tested, "test/acc")):
        *_, last = (row[name] for row in rows_of(out / METRICS_FILE) if row[name])
        assert run.data.metrics[name] == pytest.approx(float(last)), name
    # 3.17 refuses a folder, which Lightning takes by default
    if hasattr(mlflow.environment_variables, "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
        capsys.readouterr()
        assert fit_teacher(tmp_path / "more", *configs("logger/mlflow.yaml")) == 1
        error_line(capsys, "MLflow takes no folder (set MLFLOW_TRACKING_URI")
