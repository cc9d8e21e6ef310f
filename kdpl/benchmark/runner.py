"""Runs what is missing of a campaign, task by task, beside other processes that do the same."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdpl.benchmark.campaign import Campaign
from kdpl.benchmark.display import Display, last_line
from kdpl.benchmark.locks import lock
from kdpl.benchmark.orders import save_orders
from kdpl.benchmark.results import Result, add_seconds, read_seconds, selected_on_test
from kdpl.benchmark.tasks import CONFIG, FITS, Task
from kdpl.runtime import slurm
from kdpl.runtime.interrupt import INTERRUPTED, TERMINATED, Terminated
from kdpl.runtime.predictions import read_results
from kdpl.runtime.processes import in_own_process, run_step
from kdpl.runtime.run_folder import handed_over

_WAIT_SECONDS = 0.5
_NO_BAR = "--trainer.enable_progress_bar=false"


@dataclass(frozen=True)
class Failure:
    """A task that was not done.

    Attributes:
        task: The task.
        fault: What went wrong, in one sentence.
    """

    task: Task
    fault: str


def run_tasks(campaign: Campaign, tasks: Sequence[Task], out: Path, display: Display) -> list[Failure]:
    """Run tasks until all are done or cannot be.

    A task that another process works on is left to it; one that fails keeps back those alone that need it.

    Args:
        campaign: The campaign.
        tasks: What is to be done; in which order is up to what they need.
        out: The campaign's folder.
        display: Shows the work.

    Returns:
        What failed, and what could not be begun for it.

    Raises:
        KeyboardInterrupt: Ctrl-C; the task that was cut goes on at the next start.
        Requeued: Slurm will start the same command again.
    """
    failures: dict[str, Failure] = {}
    known = {task.name for task in tasks}
    while True:
        missing = [task for task in tasks if not task.done() and task.name not in failures]
        if not missing:
            return list(failures.values())
        if slurm.signalled():
            raise slurm.requeue(str(out))
        waiting = {task.name for task in missing}
        ready = []
        for task in missing:
            fault = _out_of_reach(task, failures, known, out)
            if fault is not None:
                failures[task.name] = Failure(task, fault)
            elif not waiting.intersection(task.needs):
                ready.append(task)
        if ready and not _run_first_free(campaign, tasks, ready, out, display, failures):
            display.wait(len(ready))
            time.sleep(_WAIT_SECONDS)


def _out_of_reach(task: Task, failures: Mapping[str, Failure], known: set[str], out: Path) -> str | None:
    for need in task.needs:
        if need in failures:
            return f"it needs {need}, which failed"
        if need not in known and not _done_elsewhere(need, out):
            return f"it needs {need}, which is not done: run that first"
    return None


def _done_elsewhere(need: str, out: Path) -> bool:
    """Whether a task that is not asked for here is done: only fits and class vectors are needed by others."""
    return handed_over(out / need.rpartition("/")[0])


def _run_first_free(
    campaign: Campaign,
    tasks: Sequence[Task],
    ready: Sequence[Task],
    out: Path,
    display: Display,
    failures: dict[str, Failure],
) -> bool:
    """Run the first task that no other process works on; whether there was one."""
    for task in ready:
        with lock(out, task.name) as held:
            if held is None:
                continue
            if task.done():
                return True
            display.begin(task)
            start = time.monotonic()
            fault = _run(campaign, task, held, display)
            seconds = time.monotonic() - start
            if fault is not None:
                failures[task.name] = Failure(task, fault)
        metrics = read_results(task.folder) if task.kind == "test" and fault is None else {}
        done = sum(each.kind == "test" and each.done() for each in tasks)
        display.end(task, done, seconds, fault, metrics)
        return True
    return False


def _run(campaign: Campaign, task: Task, held: int, display: Display) -> str | None:
    """Run a task in a process of its own; gives what went wrong."""
    task.folder.mkdir(parents=True, exist_ok=True)
    if task.kind in FITS:
        save_orders(task)
    command = [*task.command(), _NO_BAR] if task.kind in ("fit", "test") else task.command()
    logged = task.log.stat().st_size if task.log.is_file() else 0
    start = time.monotonic()
    try:
        code = in_own_process(run_step, command, log=task.log, held=held, tick=display.tick)
    finally:
        add_seconds(task.folder, task.kind, time.monotonic() - start)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code == TERMINATED:
        raise Terminated
    if code == slurm.REQUEUED:
        raise slurm.Requeued(f"{task.name} goes on when the job is started again")
    if code != 0:
        return last_line(task.log, logged)
    if task.kind == "test":
        result_of(campaign, task).save(task.folder)
    if not task.done():
        return f"it ended without {task.result}: start the same command again to go on"
    return None


def result_of(campaign: Campaign, task: Task) -> Result:
    """Read what the test of a run left."""
    run, row = task.run, campaign.rows[task.run.row]
    metrics = read_results(task.folder)
    images = int(metrics.pop("images"))
    config = next(Path(arg.removeprefix("--config=")) for arg in task.args if arg.endswith(f"/{CONFIG}"))
    return Result(
        protocol=run.protocol,
        setting=run.setting,
        dataset=run.dataset,
        seed=run.seed,
        row=run.row,
        title=row.title.strip("*"),
        metrics=metrics,
        images=images,
        transductive=run.protocol == "base_to_novel" and row.stage == "student",
        selected_on_test=selected_on_test(config),
        seconds=read_seconds(task.folder),
    )
