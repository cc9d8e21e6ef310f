"""Runs the missing tasks of a campaign in turn, beside other processes that do the same."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from kdpl.benchmark.campaign import Campaign
from kdpl.benchmark.tasks import RESULT_FILE, Result, Task
from kdpl.metrics import SUMMARY_COLUMNS, test_key
from kdpl.runtime import plugins, slurm
from kdpl.runtime.configs import config_files, read_config
from kdpl.runtime.files import write_text
from kdpl.runtime.predictions import read_results
from kdpl.runtime.run_folder import LOCK_FILE, PROBE_FEATURES, PROBE_FILE, PROBE_FOLDER

Command = Callable[[Sequence[str], Path], int]
"""Runs a command of kdpl, given its arguments and the log to append to.

Returns the exit code, or minus the number of the signal that ended it.
"""

_WAIT_SECONDS = 0.5
_INTERRUPTED = (130, 143, -signal.SIGINT, -signal.SIGTERM)
_NO_BAR = "--trainer.enable_progress_bar=false"


def in_subprocess(args: Sequence[str], log: Path) -> int:
    """Run ``python -m kdpl`` as a child process, which ends with this one; see ``Command``."""
    with (
        log.open("ab") as output,
        subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "kdpl", *args], stdout=output, stderr=output
        ) as child,
    ):
        try:
            while child.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(_WAIT_SECONDS)
                if slurm.signalled():
                    # Slurm notifies this process alone; the child inherits that the signal is held
                    # back
                    child.send_signal(slurm.SIGNAL)
            return child.returncode
        except BaseException:
            child.terminate()
            child.wait()
            raise


def run_tasks(
    campaign: Campaign,
    tasks: Sequence[Task],
    out: Path,
    say: Callable[[str], None],
    command: Command = in_subprocess,
) -> list[tuple[Task, str]]:
    """Run tasks until all are done or cannot be.

    They are run in their order, as their needs are met. A task that another process works on is
    left to it; one that fails keeps back only those that need it. ``out`` is the campaign's folder.
    ``say`` prints a line at the beginning and at the end of each task.

    Returns:
        The tasks that failed, and those that could not be started for it, with what went wrong, in
        one sentence.
    """
    failures: dict[str, str] = {}
    tests = [task for task in tasks if task.kind == "test"]
    waits = False
    while missing := [task for task in tasks if not task.done() and task.name not in failures]:
        if slurm.signalled():
            raise slurm.requeue(str(out))
        waiting = {task.name for task in missing}
        busy = 0
        for task in missing:
            if failed := [need for need in task.needs if need in failures]:
                failures[task.name] = f"it needs {failed[0]}, which failed"
            elif not waiting.intersection(task.needs):
                try:
                    with _locked(out, task):
                        if task.done():
                            break
                        say(f"{task.name} begins (log: {task.log})")
                        start = time.monotonic()
                        fault = _run(campaign, task, command)
                except Timeout:
                    busy += 1
                    continue
                if fault is not None:
                    failures[task.name] = fault
                outcome = f"failed ({fault})" if fault is not None else _accuracies(task)
                minutes, seconds = divmod(round(time.monotonic() - start), 60)
                done = f"{sum(test.done() for test in tests)}/{len(tests)}"
                say(f"[{done}] {task.name}: {outcome} ({minutes} min {seconds} s)")
                waits = False
                break
        else:
            if busy:
                if not waits:
                    say(f"waiting for other processes, which work on the last {busy} tasks")
                waits = True
                time.sleep(_WAIT_SECONDS)
    return [(task, failures[task.name]) for task in tasks if task.name in failures]


def _accuracies(task: Task) -> str:
    """Return the accuracies of a test in %, or of another task that it is done."""
    metrics = read_results(task.folder) if task.kind == "test" else {}
    titles = {test_key(name): title for name, title in SUMMARY_COLUMNS.items()}
    found = [f"{title} {100 * metrics[key]:.2f}" for key, title in titles.items() if key in metrics]
    return ", ".join(found) or "done"


@contextmanager
def _locked(out: Path, task: Task) -> Iterator[None]:
    """Lock a task against other processes of the campaign; a Timeout if one of them works on it."""
    lock = out / ".locks" / f"{task.name.replace('/', '+')}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock, timeout=0):
        if task.kind == "fit" and (task.folder / LOCK_FILE).exists():
            # the fit of a campaign whose own process was killed may still be running
            with FileLock(task.folder / LOCK_FILE, timeout=0):
                pass
        yield


def _run(campaign: Campaign, task: Task, command: Command) -> str | None:
    """Run a task; returns what went wrong."""
    task.folder.mkdir(parents=True, exist_ok=True)
    if task.kind == "fit":
        task.save_command()
    args = [*task.command(), *([_NO_BAR] if task.kind in ("fit", "test") else [])]
    logged = task.log.stat().st_size if task.log.is_file() else 0
    code = command(args, task.log)
    if code in _INTERRUPTED:
        raise KeyboardInterrupt
    if code == slurm.REQUEUED:
        raise slurm.Requeued(f"{task.name} is resumed when the job is started again")
    if code < 0:
        return f"it was killed by signal {-code}: start the same command again to resume it"
    if code > 0:
        return last_error(task.log, logged)
    if task.kind == "test":
        result = result_of(campaign, task)
        _save_probe(task, result, command)
        write_text(task.folder / RESULT_FILE, result.model_dump_json(indent=2))
    if not task.done():
        return f"it ended without {task.result}: start the same command again to resume it"
    return None


def _save_probe(task: Task, result: Result, command: Command) -> None:
    """Let ``compare`` fit a linear probe of the run's network, unless another row's run has it.

    There is none without labels, of other classes than the labels', or of several labels an image.
    """
    labelled = result.protocol in ("few_shot", "base_to_novel") and result.setting != "shots_0"
    labelled = labelled and test_key("acc") in result.metrics
    if not labelled or "compare" not in plugins.paths("commands"):
        return
    settings = read_config(config_files(task.args)[0])["model"]["init_args"]
    for file in task.folder.parent.glob(f"*/{PROBE_FOLDER}/*/{RESULT_FILE}"):
        about = json.loads(file.with_name(PROBE_FILE).read_bytes())
        if about["clip"] == settings["clip"] and about.get("features") == PROBE_FEATURES:
            return
    if command(["compare", str(task.folder), "--trust"], task.log) in _INTERRUPTED:
        raise KeyboardInterrupt
    folder = task.folder / PROBE_FOLDER / ("student" if settings.get("teacher") else "teacher")
    if metrics := read_results(folder):
        images = int(metrics.pop("images"))
        title = f"linear probe: {json.loads((folder / PROBE_FILE).read_bytes())['network']}"
        changes = {"row": title, "title": title, "metrics": metrics, "images": images}
        flags = {"probe": True, "transductive": False, "selected_on_test": False}
        probe = result.model_copy(update=changes | flags)
        write_text(folder / RESULT_FILE, probe.model_dump_json(indent=2))


def last_error(log: Path, begin: int = 0) -> str:
    """Return the last error in a command's log after its first ``begin`` bytes.

    Returns the last line if there is no error.
    """
    text = log.read_bytes()[begin:].decode(errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it printed nothing"])[-1]


def result_of(campaign: Campaign, task: Task) -> Result:
    """Read the result that the test of a run left in its folder."""
    metrics = read_results(task.folder)
    images = int(metrics.pop("images"))
    # the run's own config comes first
    config = read_config(config_files(task.args)[0])
    return Result(
        **task.run.model_dump(exclude={"name"}),
        title=campaign.title(task.run.row).strip("*"),
        metrics=metrics,
        images=images,
        transductive=task.run.protocol == "base_to_novel"
        and campaign.rows[task.run.row].stage == "student",
        selected_on_test="BestOnBaseTest" in str(config.get("trainer")),
    )
