"""Throughput of a training."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kdpl.data.batches import Batch
from kdpl.metrics import DATA_WAIT, IMAGES_PER_SECOND


class Throughput(Callback):
    """Logs ``train/images_per_s`` over all processes, and ``train/data_wait``.

    Both go to the progress bar and the loggers. ``train/data_wait`` is the share of the time
    between the end of a step and the arrival of the next batch. Near 0 the device is busy; near 1
    it waits, and more ``data.init_args.num_workers`` or a faster disk help. The first step of each
    epoch, or after a resume, is not counted, since it starts workers and fills caches.
    """

    def __init__(self) -> None:
        self._start = self._end = self._waited = 0.0
        self._images = self._steps = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Add the time since the end of the previous step."""
        if batch_idx == 0:
            self._steps = 0
        if self._steps > 1:
            self._waited += time.perf_counter() - self._end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Count the batch and log the rates of this epoch so far."""
        # the first step only starts the clock
        self._end = time.perf_counter()
        self._steps += 1
        if self._steps == 1:
            self._start, self._waited, self._images = self._end, 0.0, 0
            return
        self._images += len(batch.images) * trainer.world_size
        seconds = self._end - self._start
        values = {IMAGES_PER_SECOND: self._images / seconds, DATA_WAIT: self._waited / seconds}
        pl_module.log_dict(values, prog_bar=True, on_step=True, on_epoch=False, batch_size=1)
