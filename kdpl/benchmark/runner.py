"""Runs the missing steps of a campaign in turn, alongside other processes that do the same."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdpl.benchmark.steps import RESULT_FILE, CampaignStep, Result
from kdpl.metrics import ACC, test_key
from kdpl.runtime import run_folder
from kdpl.runtime.configs import config_files, read_config
from kdpl.runtime.faults import REQUEUED
from kdpl.runtime.files import lines_of, read_json, write_text
from kdpl.runtime.predictions import read_results
from kdpl.runtime.run_folder import LOCK_FILE, PROBE_FEATURES, PROBE_FILE, PROBE_FOLDER

Command = Callable[[Sequence[str], Path], int]
"""Runs a command of kdpl, given its arguments and the log to append to.

Returns the exit code, or minus the number of the signal that ended it.
"""

_WAIT_SECONDS = 0.5
_INTERRUPTED = (130, 143, -signal.SIGINT, -signal.SIGTERM)


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
                if signal.SIGUSR1 in signal.sigpending():
                    # Slurm's notice, to this process alone; the child requeues the job
                    child.send_signal(signal.SIGUSR1)
            return child.returncode
        except BaseException:
            child.terminate()
            child.wait()
            raise


def run_steps(
    steps: Sequence[CampaignStep],
    out: Path,
    say: Callable[[str], None],
    command: Command = in_subprocess,
) -> list[tuple[CampaignStep, str]]:
    """Run steps until all are done or cannot be.

    They are run in their order, as their needs are met. A step that another process works on is
    left to it; one that fails keeps back only those that need it. ``out`` is the campaign's folder.
    ``say`` prints a line at the beginning and at the end of each step.

    Returns:
        The steps that failed, and those that could not be started for it, with what went wrong, in
        one sentence.
    """
    failures: dict[str, str] = {}
    tests = [step for step in steps if step.kind == "test"]
    waits = False
    while missing := [step for step in steps if not step.done() and step.title not in failures]:
        waiting = {step.title for step in missing}
        busy = 0
        for step in missing:
            if failed := [need for need in step.needs if need in failures]:
                failures[step.title] = f"it needs {failed[0]}, which failed"
            elif not waiting.intersection(step.needs):
                try:
                    with _locked(out, step):
                        if step.done():
                            break
                        say(f"{step.title} begins (log: {step.log})")
                        start = time.monotonic()
                        failure = _run(step, command)
                except Timeout:
                    busy += 1
                    continue
                if failure is not None:
                    failures[step.title] = failure
                outcome = "done" if failure is None else f"failed ({failure})"
                minutes, seconds = divmod(round(time.monotonic() - start), 60)
                done = f"{sum(test.done() for test in tests)}/{len(tests)}"
                say(f"[{done}] {step.title}: {outcome} ({minutes} min {seconds} s)")
                waits = False
                break
        else:
            if busy:
                if not waits:
                    say(f"waiting for other processes, which work on the last {busy} steps")
                waits = True
                time.sleep(_WAIT_SECONDS)
    return [(step, failures[step.title]) for step in steps if step.title in failures]


@contextmanager
def _locked(out: Path, step: CampaignStep) -> Iterator[None]:
    """Lock a step against other processes of the campaign; a Timeout if one of them works on it."""
    lock = out / ".locks" / f"{step.title.replace('/', '+')}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock, timeout=0):
        if step.kind == "fit" and (step.folder / LOCK_FILE).exists():
            # the fit of a campaign whose process was killed may still be running
            with FileLock(step.folder / LOCK_FILE, timeout=0):
                pass
        yield


def _run(step: CampaignStep, command: Command) -> str | None:
    step.folder.mkdir(parents=True, exist_ok=True)
    if step.kind == "fit":
        step.save_command()
    logged = step.log.stat().st_size if step.log.is_file() else 0
    code = command(step.command(), step.log)
    if code in _INTERRUPTED:
        raise KeyboardInterrupt
    if code == REQUEUED:
        raise SystemExit(code)
    if code < 0:
        return f"it was killed by signal {-code}: start the same command again to resume it"
    if code > 0:
        return last_error(step.log, logged)
    if step.kind == "test":
        metrics = read_results(step.folder)
        images = int(metrics.pop("images"))
        # the run's config comes first
        config = read_config(config_files(step.args)[0])
        settings = config["model"]["init_args"]
        result = Result(
            **step.run.model_dump(),
            metrics=metrics,
            images=images,
            transductive=step.run.protocol == "base_to_novel" and bool(settings.get("teacher")),
            selected_on_test="BestOnBaseTest" in str(config.get("trainer")),
        )
        _save_probe(step, result, config, command)
        write_text(step.folder / RESULT_FILE, result.model_dump_json(indent=2))
    if not step.done():
        return f"it ended without {step.result}: start the same command again to resume it"
    return None


def _save_probe(
    step: CampaignStep, result: Result, config: Mapping[str, Any], command: Command
) -> None:
    """Let ``compare`` fit a linear probe of the run's network, unless a row with its labels has it.

    There is none without labels, of other classes than the labels', or of several labels an image.
    """
    labelled = result.protocol in ("few_shot", "base_to_novel") and result.setting != "shots_0"
    labelled = labelled and test_key(ACC) in result.metrics
    if not labelled:
        return
    # the labels that a student may see are its teacher's
    clip, teacher = (config["model"]["init_args"].get(name) for name in ("clip", "teacher"))
    labels = read_config(str(Path(teacher) / run_folder.CONFIG_FILE)) if teacher else config
    data, seed = labels["data"], labels["seed_everything"]
    same = {"clip": clip, "features": PROBE_FEATURES, "data": data, "seed": seed}
    for file in step.folder.parent.glob(f"*/{PROBE_FOLDER}/*/{RESULT_FILE}"):
        origin = read_json(file.with_name(PROBE_FILE))
        if same == {name: origin.get(name) for name in same}:
            return
    if command(["compare", str(step.folder)], step.log) in _INTERRUPTED:
        raise KeyboardInterrupt
    folder = step.folder / PROBE_FOLDER / ("student" if teacher else "teacher")
    if metrics := read_results(folder):
        images = int(metrics.pop("images"))
        title = f"linear probe: {read_json(folder / PROBE_FILE)['network']}"
        if not result.setting:
            # columns of few-shot tables say how many
            shots = data["init_args"]["shots"]
            title += f", {shots} label{'s' * (shots > 1)} a class" if shots else ", all labels"
        changes = {"row": title, "title": title, "metrics": metrics, "images": images}
        flags = {"probe": True, "transductive": False, "selected_on_test": False}
        probe = result.model_copy(update=changes | flags)
        write_text(folder / RESULT_FILE, probe.model_dump_json(indent=2))


def last_error(log: Path, begin: int = 0) -> str:
    """Return the last error in a command's log after its first ``begin`` bytes."""
    text = log.read_bytes()[begin:].decode(errors="replace") if log.is_file() else ""
    lines = lines_of(text)
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it printed nothing"])[-1]
