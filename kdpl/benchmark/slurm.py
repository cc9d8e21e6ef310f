"""A campaign as array jobs of Slurm: one array for each step of the way from teachers to students."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from kdpl.benchmark.tasks import Task
from kdpl.runtime.files import atomic_path

FOLDER = "slurm"
DEFAULT_OPTIONS = ("--gres=gpu:1", "--cpus-per-task=8")

# before its time is over an element is told, saves what it has, and waits in the queue again
_REQUEUED = ("--signal=B:USR1@120", "--requeue", "--open-mode=append")


def write_slurm(tasks: Sequence[Task], out: Path, command: Sequence[str], options: Sequence[str]) -> Path:
    """Write job files for what is missing; gives the script that submits them.

    An element of an array does all tasks of one run. An array waits for the one before it, whatever became of that:
    an element whose teacher is missing ends with a sentence, and the others go on.

    Args:
        tasks: The campaign's tasks.
        out: The campaign's folder.
        command: Arguments of ``python -m kdpl`` that run the campaign.
        options: Options of sbatch for every element.
    """
    folder = out / FOLDER
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    for old in folder.glob("level_*"):
        old.unlink()
    scripts = []
    for number, runs in enumerate(levels(tasks)):
        script = folder / f"level_{number}.sbatch"
        _write(script, _array(number, runs, folder, command, options))
        scripts.append(script)
    submit = folder / "submit.sh"
    _write(submit, _submit(scripts))
    return submit


def levels(tasks: Sequence[Task]) -> list[list[str]]:
    """Give the names of runs that have something to do, each level after those that it needs."""
    missing = [task for task in tasks if not task.done()]
    run_of = {task.name: task.run.name for task in missing}
    needs: dict[str, set[str]] = {}
    for task in missing:
        others = {run_of[need] for need in task.needs if need in run_of} - {task.run.name}
        needs.setdefault(task.run.name, set()).update(others)
    result: list[list[str]] = []
    while needs:
        level = [run for run, others in needs.items() if not others & needs.keys()]
        result.append(level)
        for run in level:
            del needs[run]
    return result


def _write(file: Path, text: str) -> None:
    with atomic_path(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _array(number: int, runs: Sequence[str], folder: Path, command: Sequence[str], options: Sequence[str]) -> str:
    sbatch = [f"--job-name=kdpl_{number}", f"--array=0-{len(runs) - 1}", f"--output={folder}/logs/%A_%a.log"]
    sbatch += [*_REQUEUED, *options]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *(f"#SBATCH {shlex.quote(option)}" for option in sbatch),
            "set -euo pipefail",
            f"cd {shlex.quote(str(Path.cwd()))}",
            # within the script, of which Slurm keeps a copy: files that are written anew leave those that wait alone
            f"runs=({shlex.join(runs)})",
            f'exec {shlex.join([sys.executable, "-m", "kdpl", *command])} --only "${{runs[SLURM_ARRAY_TASK_ID]}}"',
            "",
        ]
    )


def _submit(scripts: Sequence[Path]) -> str:
    lines = ["#!/usr/bin/env bash", "set -euo pipefail", f"cd {shlex.quote(str(Path.cwd()))}"]
    for number, script in enumerate(scripts):
        after = '--dependency=afterany:"${job%%;*}" ' if number else ""
        lines.append(f"job=$(sbatch --parsable {after}{shlex.quote(str(script))})")
    if scripts:
        lines.append('echo "the last job is $job"')
    return "\n".join([*lines, ""])
