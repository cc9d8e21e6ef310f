"""What a person sees while a campaign runs: a live view on a terminal, one line for each finished task elsewhere."""

import csv
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Protocol

import yaml
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from kdpl.benchmark.tasks import CONFIG, Task

_METRICS_FILE = "metrics.csv"  # the name alone: its module brings Lightning with it
_SHORT = {"test/acc": "acc", "test/base_acc": "base", "test/novel_acc": "novel", "test/hm": "HM"}
_SHOWN = 6


class Display(Protocol):
    """What the runner tells of its work."""

    def __enter__(self) -> "Display":
        """Begin to show."""

    def __exit__(self, *_: object) -> None:
        """Leave the screen as it should stay."""

    def begin(self, task: Task) -> None:
        """Begin a task."""

    def tick(self) -> None:
        """Go on; called about twice a second while a task runs or is waited for."""

    def wait(self, others: int) -> None:
        """Wait for other processes, which work on so many tasks."""

    def end(self, task: Task, done: int, seconds: float, fault: str | None, metrics: Mapping[str, float]) -> None:
        """End a task; ``done`` is the number of finished runs, ``fault`` says what went wrong."""


def display(console: Console, total: int, done: int) -> Display:
    """Give the view that fits the console.

    Args:
        console: Where to show it.
        total: Number of runs.
        done: Number of runs that were finished before.
    """
    return _Screen(console, total, done) if console.is_terminal else _Lines(console, total)


def outcome(task: Task, seconds: float, fault: str | None, metrics: Mapping[str, float]) -> str:
    """Say in one line how a task ended."""
    if fault is not None:
        return f"{task.name}: failed ({fault})"
    accuracies = ", ".join(f"{short} {100 * metrics[key]:.2f}" for key, short in _SHORT.items() if key in metrics)
    return f"{task.name}: {accuracies or 'done'} ({_clock(seconds)})"


class _Lines:
    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._waiting = False

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, task: Task) -> None:
        pass

    def tick(self) -> None:
        pass

    def wait(self, others: int) -> None:
        if not self._waiting:
            line = f"waiting for other processes, which work on the last {others} tasks"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._waiting = True

    def end(self, task: Task, done: int, seconds: float, fault: str | None, metrics: Mapping[str, float]) -> None:
        self._waiting = False
        line = f"[{done}/{self._total}] {outcome(task, seconds, fault, metrics)}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Screen:
    def __init__(self, console: Console, total: int, done: int) -> None:
        self._bar = Progress(
            TextColumn("runs"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[time]}"),
            console=console,
            expand=True,
        )
        self._overall = self._bar.add_task("", total=total, completed=done, time="")
        self._started = time.monotonic()
        self._before = self._done = done
        self._total = total
        self._task: Task | None = None
        self._current = Text()
        self._last: list[Text] = []
        self._live = Live(self._picture(), console=console, refresh_per_second=4)

    def __enter__(self) -> "_Screen":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._current = Text()
        self._show()
        self._live.stop()

    def begin(self, task: Task) -> None:
        self._task = task
        self.tick()

    def tick(self) -> None:
        if self._task is not None:
            self._current = Text(f"{self._task.name}  {progress_of(self._task)}", overflow="ellipsis", no_wrap=True)
        self._show()

    def wait(self, others: int) -> None:
        self._task = None
        self._current = Text(f"waiting for other processes, which work on the last {others} tasks")
        self._show()

    def end(self, task: Task, done: int, seconds: float, fault: str | None, metrics: Mapping[str, float]) -> None:
        self._task = None
        self._done = done
        if fault is not None or metrics:
            line = Text(outcome(task, seconds, fault, metrics), style="red" if fault else "", overflow="ellipsis")
            self._last = [*self._last, line][-_SHOWN:]
        self._show()

    def _show(self) -> None:
        self._bar.update(self._overall, completed=self._done, time=self._time())
        self._live.update(self._picture(), refresh=True)

    def _time(self) -> str:
        elapsed = time.monotonic() - self._started
        runs = self._done - self._before
        # by the runs of this start: other processes may help, or be gone
        left = f", about {_clock(elapsed / runs * (self._total - self._done))} left" if runs else ""
        return f"{_clock(elapsed)}{left}"

    def _picture(self) -> Group:
        return Group(*self._last, self._bar, self._current)


def progress_of(task: Task) -> str:
    """Say in which epoch the fit of a task is; empty while that is not known."""
    if task.kind != "fit":
        return ""
    try:
        config = task.folder / CONFIG
        last = _last_epoch(config, config.stat().st_mtime_ns)
        with (task.folder / _METRICS_FILE).open(newline="", encoding="utf-8") as lines:
            epochs = [int(row["epoch"]) for row in csv.DictReader(lines) if row.get("epoch")]
        return f"epoch {epochs[-1] + 1} of {last}" if epochs else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # not written yet, or being written


@cache
def _last_epoch(config: Path, changed_at: int) -> int:
    del changed_at  # a config that was written anew is read anew
    return int(yaml.safe_load(config.read_text(encoding="utf-8"))["trainer"]["max_epochs"])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def last_line(log: Path, begin: int = 0) -> str:
    """Give the last error that a command printed, or else its last line.

    Args:
        log: What it printed.
        begin: Bytes that earlier starts had printed before.
    """
    if not log.is_file():
        return "it printed nothing"
    text = log.read_bytes()[begin:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it printed nothing"])[-1]
