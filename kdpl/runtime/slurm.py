"""Slurm's notice that a job's time is nearly over, and how to requeue the job; imports no torch.

The notice is a signal that stays pending until the process checks for it, so it interrupts nothing.
Child processes (loader workers, W&B's service) inherit the blocked signal, which would otherwise
end them.
"""

import os
import signal
import subprocess
from pathlib import Path

from kdpl.errors import ConfigError, KdplError

REQUEUED = 75
"""Exit code of a command that resumes when its job restarts; ``EX_TEMPFAIL`` of sysexits.h."""

SIGNAL = signal.SIGUSR1
"""Signal that ``#SBATCH --signal`` has to name."""

_SCONTROL_SECONDS = 60


class Requeued(Exception):  # noqa: N818 - nothing went wrong
    """The job is in the queue again: the command ends here, and resumes when the job starts."""


class RequeueError(KdplError):
    """The job could not be put back into the queue."""


def in_job() -> bool:
    """Return whether this process belongs to a Slurm job."""
    return "SLURM_JOB_ID" in os.environ


def listen() -> None:
    """Block the notice, for ``signalled`` to check; call it before any thread is started."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})


def signalled() -> bool:
    """Return whether the notice has arrived."""
    return in_job() and SIGNAL in signal.sigpending()


def require_srun() -> None:
    """Raise a ConfigError for a task that would wait forever for tasks that nobody starts."""
    tasks = int(os.environ.get("SLURM_NTASKS", 1))
    if tasks == 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ConfigError(
            f"the Slurm job has {tasks} tasks: give --ntasks-per-node instead of --ntasks"
        )
    if "SLURM_STEP_ID" not in os.environ:
        raise ConfigError(
            f"the Slurm job has {tasks} tasks and this process is none of them: put srun before "
            "the command, which starts it once for each task"
        )


def requeue(what: str, checkpoint: Path | None = None) -> Requeued | RequeueError:
    """Put the job back into the queue; return the exception that ends the command."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    kept = f"; {checkpoint} is kept" if checkpoint is not None else ""
    # print first: once Slurm has agreed, it may end this process at any moment
    print(
        f"the job's time is nearly over{kept}: job {job} is requeued, to resume {what}", flush=True
    )
    try:
        command = ["scontrol", "requeue", job]
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=_SCONTROL_SECONDS
        )
        if done.returncode == 0:
            return Requeued(f"job {job} is in the queue again")
        problem = done.stderr.strip() or f"scontrol ended with {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    return RequeueError(
        f"job {job} could not be requeued ({problem}){kept}: submit it again to resume {what}"
    )
