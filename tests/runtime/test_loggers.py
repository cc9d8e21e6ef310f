from pathlib import Path

import pytest
from runs import configs, fit_teacher, rows_of
from runs import test as run_test

from kdpl.runtime.loggers import MetricsCSV, read_metrics
from kdpl.runtime.predictions import read_results
from kdpl.runtime.run_folder import METRICS_FILE


def test_a_fit_and_a_test_beside_it_append_rows_and_columns_to_the_same_file(tmp_path):
    fit, test = MetricsCSV(str(tmp_path)), MetricsCSV(str(tmp_path))
    fit.log_metrics({"a": 1 / 3}, step=1)
    test.log_metrics({"t": 2}, step=1)
    fit.log_metrics({"a": 3}, step=2)
    fit.log_metrics({"v": 4}, step=2)
    test.log_metrics({"t": 5.0}, step=2)
    rows = [(row["a"], row["t"], row["v"] or "") for row in rows_of(tmp_path / METRICS_FILE)]
    assert rows[0] == (repr(1 / 3), "", "")
    assert rows[1:] == [("", "2.0", ""), ("3.0", "", ""), ("", "", "4.0"), ("", "5.0", "")]
    curves = {"a": [(1, 1 / 3), (2, 3.0)], "t": [(1, 2.0), (2, 5.0)], "v": [(2, 4.0)]}
    assert read_metrics(tmp_path / METRICS_FILE) == curves


def test_of_two_values_of_one_step_the_later_one_counts_and_half_a_line_is_removed(tmp_path):
    for step, value in ((5, 0.1), (9, 0.2), (5, 0.3)):
        MetricsCSV(str(tmp_path)).log_metrics({"val/acc": value}, step=step)
        # as a process leaves it that is killed
        with (tmp_path / METRICS_FILE).open("a") as file:
            file.write("1,2")
    MetricsCSV(str(tmp_path)).log_metrics({"val/acc": 0.4}, step=10)
    assert read_metrics(tmp_path / METRICS_FILE) == {"val/acc": [(5, 0.3), (9, 0.2), (10, 0.4)]}


def test_metrics_of_a_run_agree_with_its_results(student_run):
    curves = read_metrics(student_run / METRICS_FILE)
    assert [value for _, value in curves["test/acc"]] == [read_results(student_run)["test/acc"]]
    assert len(curves["train/loss"]) == len(curves["val/acc"]) == 2
    epochs = [int(row["epoch"]) for row in rows_of(student_run / METRICS_FILE) if row["train/loss"]]
    assert epochs == [0, 1]


def test_tensorboard_gets_the_same_numbers_inside_the_folder(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.chdir(tmp_path)
    assert fit_teacher("run", *configs("logger/tensorboard.yaml")) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert run_test("run") == 0
    files = sorted(
        Path("run").rglob("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime
    )
    events = accumulator.EventAccumulator(str(files[0])).Reload()
    for name in ("train/loss", "val/acc"):
        expected = [float(row[name]) for row in rows_of(Path("run") / METRICS_FILE) if row[name]]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(expected, rel=1e-6)
        assert expected
    tested = accumulator.EventAccumulator(str(files[1])).Reload()
    (event,) = tested.Scalars("test/acc")
    assert event.value == pytest.approx(read_results(Path("run"))["test/acc"], rel=1e-6)
