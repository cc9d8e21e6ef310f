"""Interruptions of a training: a job's limit saves a checkpoint, all others keep the last."""

import atexit
import subprocess
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from kdpl.runtime import slurm
from kdpl.runtime.faults import handle_signals, mark
from kdpl.runtime.loggers import finish_logging
from kdpl.runtime.run_folder import LAST

_STEPS_BETWEEN_TALKS = 10
_GRACE_SECONDS = 5


class Requeue(Checkpoint):
    """Saves, requeues the Slurm job and exits between two steps, once its time limit is announced.

    Lightning's handler saves when the signal arrives, possibly in the middle of a step; it is
    disabled by ``SLURMEnvironment(auto_requeue=False)``. A Checkpoint, so it runs after all
    callbacks with state.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the first step."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_args: Any) -> None:
        """Exit between two optimiser steps, except after an epoch's last batch: its end follows."""
        if trainer.global_step == self._step or trainer.is_last_batch:
            return
        self._step = trainer.global_step
        # all processes must check at the same step, since the check is a collective
        if trainer.world_size == 1 or self._step % _STEPS_BETWEEN_TALKS == 0:
            self._end_if_signalled(trainer, save=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exit after an epoch, since it was just saved, unless it was the last."""
        if trainer.current_epoch + 1 != trainer.max_epochs:
            self._end_if_signalled(trainer, save=False)

    def on_test_batch_end(self, trainer: Trainer, *_args: Any) -> None:
        """Exit a test; it will start over."""
        self._end_if_signalled(trainer, save=False)

    def _end_if_signalled(self, trainer: Trainer, save: bool) -> None:
        if not trainer.strategy.reduce_boolean_decision(slurm.signalled(), all=False):
            return
        file = Path(trainer.default_root_dir) / LAST
        if save:
            trainer.save_checkpoint(file)
        ended: BaseException = SystemExit(slurm.REQUEUED)
        if trainer.is_global_zero:
            # before the W&B service ends with the job
            finish_logging(trainer.loggers, exit_code=1)
            ended = slurm.requeue(trainer.default_root_dir, file if save else None)
        # wait for the requeue: srun ends the job with the first process that exits
        trainer.strategy.barrier("kdpl requeue")
        raise ended


class InterruptionHandler(Callback):
    """Adds step and kept checkpoint to an error, and lets SIGTERM interrupt a training.

    Lightning's SIGTERM handler waits for the other processes, but they may be waiting for this
    process in another collective operation.
    """

    launched: list[list[subprocess.Popen[bytes]]] = []  # noqa: RUF012 - of all trainers of this process
    """The processes that Lightning started for this process, shared by all its trainers."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler, installed just before."""
        handle_signals()

    on_test_start = on_validation_start = on_train_start

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the other processes."""
        self._note_processes(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Mark the error for its message, and let no other process outlive this process."""
        self._note_processes(trainer)
        for processes in self.launched:
            for process in processes:
                atexit.register(_end, process)
            # the launcher watches this list, and would kill this process before it prints the error
            processes.clear()

        if trainer.state.fn != "fit" or isinstance(exception, slurm.Requeued | slurm.RequeueError):
            return
        last = Path(trainer.default_root_dir) / LAST
        kept = f"{last} is kept" if last.is_file() else "there is no checkpoint yet"
        mark(exception, f"after {trainer.global_step} steps; {kept}")

    def _note_processes(self, trainer: Trainer) -> None:
        processes = getattr(trainer.strategy.launcher, "procs", None)
        if processes:
            self.launched.append(processes)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process, since it may print an error, then kill it."""
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
