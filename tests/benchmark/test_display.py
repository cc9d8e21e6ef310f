import io

import pytest
from campaigns import campaign
from rich.console import Console

from kdpl.benchmark.display import Display
from kdpl.benchmark.protocols import Place, plan

METRICS = {"images": 3, "test/base_acc": 0.5, "test/novel_acc": 0.25, "test/hm": 1 / 3, "test/acc": 0.4}


@pytest.fixture
def tasks(tmp_path):
    return plan(campaign("{protocols: [base_to_novel], datasets: [dtd]}"), Place(tmp_path))[:2]


def test_without_a_terminal_each_finished_task_is_one_line(tasks):
    fit, test = tasks
    console = Console(file=io.StringIO(), width=40)
    with Display(console, total=4, done=1) as shown:
        shown.begin(fit)
        shown.end(fit, 1, 61.2, None, {})
        shown.end(test, 2, 2, None, METRICS)
        shown.end(test, 2, 3, "it broke [here]", {})
        shown.wait(2)
        shown.wait(1)
    assert console.file.getvalue().splitlines() == [
        "[1/4] base_to_novel/dtd/seed_1/teacher/fit: done (1 min 1 s)",
        "[2/4] base_to_novel/dtd/seed_1/teacher/test: acc 40.00, base 50.00, novel 25.00, HM 33.33 (2 s)",
        "[2/4] base_to_novel/dtd/seed_1/teacher/test: failed (it broke [here])",
        "waiting for other processes, which work on the last 2 tasks",
    ]


def test_a_terminal_shows_a_bar_of_all_runs_and_the_current_task(tasks):
    fit, test = tasks
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with Display(console, total=4, done=1) as shown:
        shown.end(test, 2, 2, None, METRICS)
        shown.begin(fit)
    text = console.file.getvalue()
    for words in ("HM 33.33", "2/4", "base_to_novel/dtd/seed_1/teacher/fit"):
        assert words in text
