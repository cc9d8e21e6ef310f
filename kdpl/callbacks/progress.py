"""Speed of a training, and the progress bar that shows it with loss and accuracy on one line."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from rich import get_console
from rich.progress import TimeRemainingColumn

from kdpl.metrics import DATA_WAIT, IMAGES_PER_SECOND, TRAIN_LOSS, val_key

_NAMES = {
    TRAIN_LOSS: "loss",
    val_key("acc"): "acc",
    val_key("hm"): "HM",
    IMAGES_PER_SECOND: "images/s",
    DATA_WAIT: "wait",
}
_WIDTH_WITHOUT_BAR = 80
_LEAST_BAR = 6


class Throughput(Callback):
    """Logs ``train/images_per_s`` over all processes and ``train/data_wait``, to the progress bar and the loggers.

    ``train/data_wait`` is the share of the time between the end of a step and the arrival of the next batch. Near 0
    the device is busy; near 1 it waits, and more ``data.init_args.num_workers`` or a faster disk help. The first step
    of each epoch, which starts workers and fills caches, is not counted.
    """

    def __init__(self) -> None:
        self._start = self._end = self._waited = 0.0
        self._images = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add the time since the end of the step before."""
        if batch_idx > 1:
            self._waited += time.perf_counter() - self._end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch and log the rates of this epoch so far."""
        self._end = time.perf_counter()
        if batch_idx == 0:
            self._start, self._waited, self._images = self._end, 0.0, 0
            return
        self._images += len(batch[0]) * trainer.world_size
        seconds = self._end - self._start
        values = {IMAGES_PER_SECOND: self._images / seconds, DATA_WAIT: self._waited / seconds}
        pl_module.log_dict(values, prog_bar=True, on_step=True, on_epoch=False, batch_size=1)


class ProgressBar(RichProgressBar):
    """Rich's progress bar with short names of metrics."""

    def __init__(self) -> None:
        # three digits of everything: a loss of 0.0123, an accuracy of 0.975, 1.23e+03 images a second
        super().__init__(theme=RichProgressBarTheme(metrics_format=".3g"))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return loss, accuracy (the harmonic mean if there is one), speed and wait for data by short names."""
        metrics = super().get_metrics(trainer, pl_module)
        short: dict[str, Any] = {label: metrics[name] for name, label in _NAMES.items() if name in metrics}
        if "HM" in short:
            del short["acc"]
        if "images/s" in short:
            short["images/s"] = f"{short['images/s']:.0f}"
        if "wait" in short:
            short["wait"] = f"{short['wait']:.0%}"
        return short

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Return the columns without elapsed time and steps per second, and with a bar where the console has room."""
        label, bar, batches, *_ = super().configure_columns(trainer)
        bar.bar_width = min(40, get_console().width - _WIDTH_WITHOUT_BAR)
        bars = [bar] if bar.bar_width >= _LEAST_BAR else []
        return [label, *bars, batches, TimeRemainingColumn(compact=True)]
