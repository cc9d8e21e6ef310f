"""How many images a second the training takes."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Logs ``train/images_per_s`` over all processes, to the progress bar and the loggers.

    Args:
        warmup_steps: Steps of each epoch that are not counted; the first ones start workers and fill caches.
    """

    def __init__(self, warmup_steps: int = 1) -> None:
        self.warmup_steps = warmup_steps
        self._start = 0.0
        self._images = 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Count the batch and show the rate so far in this epoch."""
        del outputs
        if batch_idx < self.warmup_steps:
            self._start, self._images = time.perf_counter(), 0
            return
        self._images += len(batch[0]) * trainer.world_size
        rate = self._images / (time.perf_counter() - self._start)
        pl_module.log("train/images_per_s", rate, prog_bar=True, on_step=True, on_epoch=False, batch_size=1)
