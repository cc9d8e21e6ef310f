"""The end of a training's time: between two steps it saves, requeues its Slurm job, and exits."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from kdpl.errors import KdplError
from kdpl.runtime.faults import REQUEUED, Terminated, mark
from kdpl.runtime.loggers import finish_logging
from kdpl.runtime.run_folder import LAST


class Preemption(Checkpoint):
    """Saves and exits between two steps after SIGTERM or SIGUSR1, which also requeues the job.

    Lightning's handlers would save within a step. A Checkpoint, so others with state come before.
    """

    _terminated = False  # for the later fits of this process as well
    _launched: list[list[subprocess.Popen[bytes]]] = []  # noqa: RUF012 - by all its trainers

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Exit before a stage begins."""
        self._launched.append(getattr(trainer.strategy.launcher, "procs", []))
        self._leave_if_told(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler of SIGTERM, installed just before."""
        self._step = trainer.global_step

        def told(*_: Any) -> None:
            if trainer.testing:
                raise Terminated
            Preemption._terminated = True

        signal.signal(signal.SIGTERM, told)

    on_test_start = on_train_start

    def on_train_batch_end(self, trainer: Trainer, *_args: Any) -> None:
        """Exit between two optimiser steps, except after an epoch's last batch: its end follows."""
        before, self._step = self._step, trainer.global_step
        if self._step == before or trainer.is_last_batch:
            return
        if trainer.world_size == 1 or self._step % 10 == 0:  # at the same steps on all processes
            self._leave_if_told(trainer, Path(trainer.default_root_dir) / LAST)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exit after an epoch, since it was just saved, unless it was the last."""
        if trainer.current_epoch + 1 != trainer.max_epochs:
            self._leave_if_told(trainer)

    def on_test_batch_end(self, trainer: Trainer, *_args: Any) -> None:
        """Exit a test without a talk, since processes have different numbers of batches."""
        if trainer.is_global_zero and self._noticed():
            self._requeue(trainer)
            raise SystemExit(REQUEUED)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: Any) -> None:
        """Say what is kept; what SIGTERM did to workers is an interruption, too."""
        for processes in self._launched:
            processes.clear()  # or Lightning would kill this process before it prints the error
        error = Terminated() if self._terminated and isinstance(exception, Exception) else exception
        if trainer.state.fn == "fit":
            last = Path(trainer.default_root_dir) / LAST
            kept = f"{last} is kept" if last.is_file() else "there is no checkpoint yet"
            mark(error, f"after {trainer.global_step} steps; {kept}")
        if error is not exception:
            raise error

    def _leave_if_told(self, trainer: Trainer, file: Path | None = None) -> None:
        agree = trainer.strategy.reduce_boolean_decision
        if not agree(self._noticed() or self._terminated, all=False):
            return
        if file is not None:
            trainer.save_checkpoint(file)
        if agree(self._terminated, all=False):
            raise Terminated
        if trainer.is_global_zero:
            self._requeue(trainer)
        trainer.strategy.barrier()  # srun ends the job with the first process that exits
        raise SystemExit(REQUEUED)

    def _noticed(self) -> bool:
        return "SLURM_JOB_ID" in os.environ and signal.SIGUSR1 in signal.sigpending()

    def _requeue(self, trainer: Trainer) -> None:
        job, out = os.environ["SLURM_JOB_ID"], trainer.default_root_dir
        if "SLURM_ARRAY_JOB_ID" in os.environ:  # an element's number may be that of all
            job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        finish_logging(trainer.loggers, exit_code=1)  # before W&B's service ends with the job
        print(f"the job's time is nearly over: job {job} is requeued, to resume {out}", flush=True)
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)  # noqa: S603, S607
        if done.returncode:
            raise KdplError(f"job {job} cannot be requeued ({done.stderr.strip()}): submit it")
