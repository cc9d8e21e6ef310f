"""Slurm's notice that a job's time is nearly over, and the job's way back into the queue; imports no torch."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from kdpl.errors import KdplError

REQUEUED = 75
"""Exit code of a command that goes on when its job is started again; the system's number for 'try again later'."""

SIGNAL = signal.SIGUSR1
"""What ``#SBATCH --signal`` has to name."""

_SCONTROL_SECONDS = 60


class Requeued(Exception):  # noqa: N818 - nothing went wrong
    """The job waits in the queue again: the command ends here, and goes on when the job is started."""

    exit_code = REQUEUED


class RequeueError(KdplError):
    """The job could not be put back into the queue."""

    exit_code = 1


def in_job() -> bool:
    """Whether this process belongs to a job of Slurm."""
    return "SLURM_JOB_ID" in os.environ


def listen() -> None:
    """Keep the notice until somebody asks for it: nothing is interrupted, and nothing dies of it.

    The signal goes to all processes of a job's step, also to workers and to services that know nothing of it. All that
    this process starts inherits that it is held back.
    """
    # a handler of its own, which is never called: Lightning leaves a signal alone that has one, and saves nothing then
    signal.signal(SIGNAL, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})


def signalled() -> bool:
    """Whether the notice has come."""
    return in_job() and SIGNAL in signal.sigpending()


def died_of_notice(code: int) -> bool:
    """Whether a command ended by the notice, which it was given before it could listen.

    Args:
        code: Its exit code.
    """
    return signalled() and code == 128 + SIGNAL


def job() -> str:
    """Give the job's name for ``scontrol``: an element of an array has its own."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def requeue(where: str, checkpoint: Path | None = None) -> Requeued:
    """Put the job back into the queue; gives what ends the command.

    Slurm ends whatever still runs of the job within seconds.

    Args:
        where: What goes on later, for people.
        checkpoint: The checkpoint that it goes on from, where one was just written.

    Raises:
        RequeueError: Slurm refuses.
    """
    at = f"; {checkpoint} is kept" if checkpoint is not None else ""
    # now: once Slurm has agreed, it ends this process at any moment
    print(
        f"the job's time is nearly over{at}: job {job()} goes back into the queue, to go on with {where}",
        file=sys.stderr,
        flush=True,
    )
    try:
        done = subprocess.run(["scontrol", "requeue", job()], capture_output=True, text=True, timeout=_SCONTROL_SECONDS)  # noqa: S603, S607
        fault = None if done.returncode == 0 else (done.stderr.strip() or f"scontrol ended with {done.returncode}")
    except (OSError, subprocess.TimeoutExpired) as error:
        fault = str(error)
    if fault is not None:
        raise RequeueError(
            f"job {job()} could not be put back into the queue ({' '.join(fault.split())}){at}: submit it again to go "
            f"on with {where}"
        )
    return Requeued(f"job {job()} is in the queue again")
