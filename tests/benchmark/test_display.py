import io
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from kdpl.benchmark.campaign import parse_campaign
from kdpl.benchmark.display import display, last_line, progress_of
from kdpl.benchmark.protocols import Place, plan

ROOT = Path(__file__).parents[2]
CAMPAIGN = """
protocols: [base_to_novel]
datasets: [dtd]
rows: {teacher: {teacher: configs/teacher/quickstart.yaml}}
"""
METRICS = {"images": 3, "test/base_acc": 0.5, "test/novel_acc": 0.25, "test/hm": 1 / 3, "test/acc": 0.4}


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    fit, test = plan(parse_campaign(yaml.safe_load(CAMPAIGN), "mine", "mine.yaml"), Place(tmp_path))
    fit.folder.mkdir(parents=True)
    return fit, test


def begun(fit, rows="0,0,1.5\n1,1,1.2\n"):
    (fit.folder / "config.yaml").write_text("trainer: {max_epochs: 20}")
    (fit.folder / "metrics.csv").write_text(f"step,epoch,train/loss\n{rows}")


def test_the_epoch_of_a_fit_is_read_from_its_folder(tasks):
    fit, test = tasks
    assert progress_of(fit) == ""
    begun(fit, rows="")
    assert progress_of(fit) == ""
    begun(fit)
    assert progress_of(fit) == "epoch 2 of 20"
    assert progress_of(test) == ""
    begun(fit, rows="0,0,1.5\n1,half")
    assert progress_of(fit) == ""


def test_without_a_terminal_each_finished_task_is_one_line(tasks):
    fit, test = tasks
    console = Console(file=io.StringIO(), width=40)
    with display(console, total=4, done=1) as shown:
        shown.begin(fit)
        shown.tick()
        shown.end(fit, 1, 61.2, None, {})
        shown.end(test, 2, 2, None, METRICS)
        shown.end(test, 2, 3, "it broke [here]", {})
        shown.wait(2)
        shown.wait(1)
    assert console.file.getvalue().splitlines() == [
        "[1/4] base_to_novel/dtd/seed_1/teacher/fit: done (1 min 01 s)",
        "[2/4] base_to_novel/dtd/seed_1/teacher/test: acc 40.00, base 50.00, novel 25.00, HM 33.33 (2 s)",
        "[2/4] base_to_novel/dtd/seed_1/teacher/test: failed (it broke [here])",
        "waiting for other processes, which work on the last 2 tasks",
    ]


def test_a_terminal_shows_all_runs_the_current_one_and_the_last_accuracies(tasks):
    fit, test = tasks
    begun(fit)
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with display(console, total=4, done=1) as shown:
        shown.begin(fit)
        shown.end(test, 2, 2, None, METRICS)
        shown.end(fit, 2, 2, "it broke", {})
        shown.begin(fit)
    text = console.file.getvalue()
    assert "base_to_novel/dtd/seed_1/teacher/fit  epoch 2 of 20" in text
    assert "1/4" in text
    assert "2/4" in text
    assert " left" in text
    end = text[text.rindex("runs") - 300 :]
    assert "HM 33.33" in end
    assert "failed (it broke)" in end


def test_the_last_error_of_a_log_is_what_went_wrong(tmp_path):
    log = tmp_path / "fit.log"
    assert last_line(log) == "it printed nothing"
    log.write_text("\n")
    assert last_line(log) == "it printed nothing"
    log.write_text("error: first\nTraceback:\n  ValueError: 3\n\n")
    assert last_line(log) == "first"
    log.write_text("Traceback:\n  ValueError: 3\n\n")
    assert last_line(log) == "ValueError: 3"
    before = "error: of an earlier start, café\n"
    log.write_text(f"{before}Killed\n")
    assert last_line(log, len(before.encode())) == "Killed"
