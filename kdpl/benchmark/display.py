"""Progress of a campaign: a bar on a terminal, and everywhere one line for each finished task."""

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kdpl.benchmark.published import METRICS
from kdpl.benchmark.tasks import Task
from kdpl.metrics import test_key

_SHORT = dict(zip((test_key("acc"), *METRICS), ("acc", "base", "novel", "HM"), strict=True))


class Display:
    """Shows the runner's work: ``total`` runs, of which ``done`` were finished before."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._total = total
        self._waiting = False
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task("", total=total, completed=done)

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, task: Task) -> None:
        """Begin a task."""
        self._waiting = False
        self._progress.update(self._bar, description=task.name)

    def wait(self, others: int) -> None:
        """Wait for other processes, which work on ``others`` tasks."""
        if not self._waiting:
            self._print(f"waiting for other processes, which work on the last {others} tasks")
            self._progress.update(self._bar, description="")
        self._waiting = True

    def end(self, task: Task, done: int, seconds: float, fault: str | None, metrics: Mapping[str, float]) -> None:
        """End a task; ``done`` is the number of finished runs, ``fault`` says what went wrong."""
        self._progress.update(self._bar, completed=done, description="")
        if fault is None:
            accuracies = [f"{short} {100 * metrics[key]:.2f}" for key, short in _SHORT.items() if key in metrics]
            minutes, rest = divmod(round(seconds), 60)
            outcome = f"{', '.join(accuracies) or 'done'} ({f'{minutes} min ' if minutes else ''}{rest} s)"
        else:
            outcome = f"failed ({fault})"
        self._print(f"[{done}/{self._total}] {task.name}: {outcome}")

    def _print(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
