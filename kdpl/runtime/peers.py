"""What holds among the processes of one training: none goes on alone, and none has statistics of its own.

docs/distributed.md says what several processes compute as one does, and what not.
"""

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import nn

from kdpl.errors import ConfigError, PeerError
from kdpl.runtime.interrupt import end_now, ends_at_once, held_back, terminate_once, unheard
from kdpl.runtime.launch import as_first, first_process

# what gloo and NCCL say when the other end of a connection is gone
_LOST = ("gloo/transport", "remote process exit")
_ALONE = (
    "another process of this training ended, and this one cannot go on alone: mend what that one said, if it said "
    "anything, and start the same command again"
)

_TICK_SECONDS = 1.0
# most end by themselves and have something to say
_GRACE_SECONDS = 10.0
# a logger may have much to send
_FAREWELL_SECONDS = 600.0


@contextmanager
def lost_in_one_sentence() -> Iterator[None]:
    """Turn a collective operation that lost its other end into a KdplError; all else passes.

    Raises:
        PeerError: Another process of this training ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _LOST):
            raise
        raise PeerError(_ALONE) from error


def part() -> None:
    """Leave the other processes, once all is done and none of them waits for this one.

    Gloo's threads may still hold tensors of the last operation. One that lets go of them while Python shuts down would
    abort this process, and so a training that has come to its end.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # the trainer and what it wrapped hold the connections too
        gc.collect()
        torch.distributed.destroy_process_group()


def end_with_starter() -> None:
    """Let this process end soon after the one that started it, where that is another process of the training.

    A process that waits in NCCL for one that is gone would wait for half an hour.
    """
    starter = first_process()
    if starter is None and int(os.environ.get("LOCAL_RANK", "0")) > 0:
        starter = os.getppid()
    if starter is not None:
        threading.Thread(target=_watch, args=(starter,), daemon=True).start()


def _watch(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(_TICK_SECONDS)
    time.sleep(_GRACE_SECONDS)
    end_now(1, f"error: {_ALONE}\n")


class Launcher(_SubprocessScriptLauncher):
    """Starts the other processes of a training on this machine, and ends this one once it waits for one in vain.

    Lightning's own kills this process at a moment within five seconds after another has failed: before it has said
    what it knows, in the middle of what it says, or while a logger still sends.
    """

    leaving = False
    """Whether this process is ending by itself."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:  # noqa: ANN401
        """Start the others, unless something else does, and call the function."""
        del trainer
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            with as_first(), held_back():
                self._call_children_scripts()
            threading.Thread(target=self._watch, daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def _watch(self) -> None:
        while not any(codes := [process.poll() for process in self.procs]):
            if codes.count(0) == len(codes):
                return
            time.sleep(_TICK_SECONDS)
        time.sleep(_GRACE_SECONDS)
        if self.leaving:
            time.sleep(_FAREWELL_SECONDS)
        self.kill(signal.SIGKILL)
        end_now(1, f"error: {_ALONE}\n")


def take_leave(trainer: Trainer) -> None:
    """Let this process say what it has to say, and end by itself, though other processes of its training have ended.

    Args:
        trainer: What trained.
    """
    if isinstance(trainer.strategy.launcher, Launcher):
        trainer.strategy.launcher.leaving = True


def require_devices_for_batch_norm(trainer: Trainer) -> None:
    """Refuse batch norm over all processes where torch has none, which it would say in words of its own.

    Args:
        trainer: What trains; asked before it changes the model.

    Raises:
        ConfigError: It would do so on the CPU.
    """
    synchronised = trainer.world_size > 1 and getattr(trainer.strategy, "_layer_sync", None) is not None
    if synchronised and trainer.strategy.root_device.type == "cpu":
        raise ConfigError(
            "trainer.sync_batchnorm is true, and on the CPU torch has no batch norm over several processes: set it to "
            "false, or train on GPUs"
        )


def heed_signals(trainer: Trainer) -> None:
    """Let Ctrl-C and SIGTERM end all processes of a training, also while they start and none could answer.

    Lightning's own handler of SIGTERM waits for the other processes, which wait for this one in another operation.

    Args:
        trainer: What starts them, if it does.
    """
    # Lightning has no hooks for any of these
    handler = terminate_once if first_process() is None else unheard
    trainer._signal_connector._sigterm_notifier_fn = handler  # type: ignore[method-assign, assignment]
    strategy = trainer.strategy
    launcher = strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        strategy._launcher = Launcher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
        # the first waits there until all others have imported everything
        at_once = ends_at_once(partial(end_others, trainer))
        strategy.setup_environment = at_once(strategy.setup_environment)  # type: ignore[method-assign]


def end_others(trainer: Trainer) -> None:
    """End the processes that this one started for a training, if it started any."""
    launcher = trainer.strategy.launcher
    if launcher is not None:
        launcher.kill(signal.SIGKILL)


@torch.no_grad()
def share_buffers(module: nn.Module) -> None:
    """Give all processes the first one's buffers: those that the checkpoint holds.

    In training each process adds its own batches to its batch norms' running statistics.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)
