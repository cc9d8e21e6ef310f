"""Slurm's notice that a job's time is nearly over, and how to requeue the job; imports no torch.

The notice is a signal that stays pending until it is asked for: nothing is interrupted by it, and
what a process starts (loader workers, W&B's service) inherits that it is held back, where it would
otherwise end them.
"""

import os
import signal
import subprocess
from pathlib import Path

from kdpl.errors import ConfigError, KdplError

REQUEUED = 75
"""Exit code of a command that resumes when its job restarts; the system's 'try again later'."""

SIGNAL = signal.SIGUSR1
"""The signal that ``#SBATCH --signal`` has to name."""

_SCONTROL_SECONDS = 60


class Requeued(Exception):  # noqa: N818 - nothing went wrong
    """The job is in the queue again: the command ends here, and resumes when the job is started."""


class RequeueError(KdplError):
    """The job could not be put back into the queue."""


def in_job() -> bool:
    """Return whether this process belongs to a Slurm job."""
    return "SLURM_JOB_ID" in os.environ


def listen() -> None:
    """Hold the notice back until ``signalled`` is asked; call before any thread is started."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})


def signalled() -> bool:
    """Return whether the notice has arrived."""
    return in_job() and SIGNAL in signal.sigpending()


def require_srun() -> None:
    """Refuse a task that would wait forever for other tasks of its job, which nobody starts."""
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
    """Put the job back into the queue; returns the exception that ends the command.

    ``what`` resumes later, from the ``checkpoint`` if one was just written.
    """
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    kept = f"; {checkpoint} is kept" if checkpoint is not None else ""
    # printed first: once Slurm has agreed, it may end this process at any moment
    print(
        f"the job's time is nearly over{kept}: job {job} is requeued, to resume {what}", flush=True
    )
    try:
        command = ["scontrol", "requeue", job]
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=_SCONTROL_SECONDS
        )
        fault = (
            None
            if done.returncode == 0
            else done.stderr.strip() or f"scontrol ended with {done.returncode}"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        fault = str(error)
    if fault is not None:
        return RequeueError(
            f"job {job} could not be requeued ({fault}){kept}: submit it again to resume {what}"
        )
    return Requeued(f"job {job} is in the queue again")
