"""A campaign as array jobs of Slurm: one array for each step from teachers to students."""

import shlex
import sys
from collections.abc import Sequence
from graphlib import TopologicalSorter
from pathlib import Path

from kdpl.benchmark.tasks import Task
from kdpl.runtime.files import write_text

DEFAULT_OPTIONS = ("--gres=gpu:1", "--cpus-per-task=8")

# before its time is over an element is notified, saves a checkpoint and is requeued
_REQUEUED = ("--signal=B:USR1@120", "--requeue", "--open-mode=append")


def write_slurm(
    tasks: Sequence[Task], out: Path, command: Sequence[str], options: Sequence[str]
) -> Path:
    """Write job files for the missing tasks; returns the script that submits them.

    An element of an array does all tasks of one run. An array waits for the end of the one before
    it, failed or not: an element whose teacher is missing ends with an error, and the others run.

    They go into the folder ``out/slurm``. ``command`` are the arguments of ``python -m kdpl`` that
    run the campaign, ``options`` those of sbatch for every element.
    """
    folder = out / "slurm"
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    for old in folder.glob("level_*"):
        old.unlink()
    submit = ["set -euo pipefail", f"cd {shlex.quote(str(Path.cwd()))}"]
    for number, runs in enumerate(levels(tasks)):
        script = folder / f"level_{number}.sbatch"
        sbatch = [
            f"--job-name=kdpl_{number}",
            f"--array=0-{len(runs) - 1}",
            f"--output={folder}/logs/%A_%a.log",
        ]
        _write(
            script,
            *(f"#SBATCH {shlex.quote(option)}" for option in (*sbatch, *_REQUEUED, *options)),
            "set -euo pipefail",
            f"cd {shlex.quote(str(Path.cwd()))}",
            # in the script, of which Slurm keeps a copy: new files do not change jobs that wait
            f"runs=({shlex.join(runs)})",
            f"exec {shlex.join([sys.executable, '-m', 'kdpl', *command])} --only "
            f'"${{runs[SLURM_ARRAY_TASK_ID]}}"',
        )
        after = '--dependency=afterany:"${job%%;*}" ' if number else ""
        submit += [f"job=$(sbatch --parsable {after}{shlex.quote(str(script))})"]
    return _write(folder / "submit.sh", *submit, 'echo "the last job is ${job:-none}"')


def levels(tasks: Sequence[Task]) -> list[list[str]]:
    """Return the names of runs with missing tasks, each level after those that it needs."""
    missing = [task for task in tasks if not task.done()]
    run_of = {task.name: task.run.name for task in missing}
    needs: dict[str, set[str]] = {}
    for task in missing:
        others = {run_of[need] for need in task.needs if need in run_of} - {task.run.name}
        needs.setdefault(task.run.name, set()).update(others)
    sorter, result = TopologicalSorter(needs), []
    sorter.prepare()
    while level := list(sorter.get_ready()):
        result.append(level)
        sorter.done(*level)
    return result


def _write(file: Path, *lines: str) -> Path:
    write_text(file, "\n".join(["#!/usr/bin/env bash", *lines, ""]))
    return file
