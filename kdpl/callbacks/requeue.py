"""A checkpoint when a Slurm job's time is nearly over, and the job back into the queue."""

import signal
import threading
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import WandbLogger

from kdpl.runtime.logged_first import log_step
from kdpl.runtime.run_folder import LAST
from kdpl.runtime.slurm import Requeued, RequeueError, requeue, signalled

_STEPS_BETWEEN_TALKS = 10
_LOGGER_SECONDS = 20


class Requeue(Checkpoint):
    """Once Slurm has sent its notice: ends a step, saves the run's last checkpoint, requeues the job and ends.

    Lightning's own handler saves wherever the signal strikes, which may be in the middle of a step, and under a name
    of its own. This one takes the place of it; ``auto_requeue=False`` of Lightning's SLURMEnvironment turns it off too.

    A Checkpoint, so that it comes after all callbacks whose state a checkpoint holds.
    """

    def __init__(self) -> None:
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know where the count of steps begins."""
        del pl_module
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_args: Any) -> None:  # noqa: ANN401
        """Save between two steps; in the middle of one, gradients of several batches would be lost."""
        if trainer.global_step == self._step or trainer.is_last_batch:
            # at an epoch's last batch its validation comes first, and its end is a better place
            return
        self._step = trainer.global_step
        # to ask all processes costs a little, and they must ask at the same step
        if trainer.world_size == 1 or self._step % _STEPS_BETWEEN_TALKS == 0:
            self._end_if_signalled(trainer, save=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End after an epoch, which has just been saved; after the last one there is little left to do."""
        del pl_module
        if trainer.current_epoch + 1 != trainer.max_epochs:
            self._end_if_signalled(trainer, save=False)

    def on_test_batch_end(self, trainer: Trainer, *_args: Any) -> None:  # noqa: ANN401
        """Leave a test, which begins anew."""
        self._leave_if_signalled(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_args: Any) -> None:  # noqa: ANN401
        """Leave a validation that is no part of a fit, likewise."""
        if trainer.state.fn == "validate":
            self._leave_if_signalled(trainer)

    def _end_if_signalled(self, trainer: Trainer, save: bool) -> None:
        if not trainer.strategy.reduce_boolean_decision(signalled(), all=False):
            return
        file = Path(trainer.default_root_dir) / LAST
        if save:
            log_step(trainer)
            trainer.save_checkpoint(file)
        ended = _requeue(trainer, file) if trainer.is_global_zero else None
        # or srun would end the job with the first process that ends, before the job is in the queue
        code = trainer.strategy.broadcast(None if ended is None else ended.exit_code)
        raise ended if ended is not None else SystemExit(code)

    def _leave_if_signalled(self, trainer: Trainer) -> None:
        # Slurm ends the other processes
        if trainer.is_global_zero and signalled():
            raise _requeue(trainer)


def may_requeue(environment: object) -> bool:
    """Whether the trainer's cluster environment leaves the job to be requeued."""
    return not isinstance(environment, SLURMEnvironment) or environment.auto_requeue


def _requeue(trainer: Trainer, checkpoint: Path | None = None) -> Requeued | RequeueError:
    # all is on the disk: whoever ends this process may do so at once
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            _send_rest(logger)
    try:
        return requeue(trainer.default_root_dir, checkpoint)
    except RequeueError as error:
        return error


def _send_rest(logger: WandbLogger) -> None:
    """Let W&B write or send what it still has: Slurm ends its service too. Without network it must not wait long."""
    run = logger.experiment
    run.mark_preempting()
    sending = threading.Thread(target=run.finish, kwargs={"exit_code": 1}, daemon=True)
    sending.start()
    sending.join(_LOGGER_SECONDS)
