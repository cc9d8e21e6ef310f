"""A progress bar on one line: epoch, loss, accuracy, speed, and the time left for the fit."""

import time
from math import inf, isfinite
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from rich import get_console
from rich.progress import ProgressColumn, Task
from rich.text import Text
from torch import Tensor

from kdpl.data.batches import Batch
from kdpl.metrics import DATA_WAIT, IMAGES_PER_SECOND, TRAIN_LOSS, val_key

_NAMES = {
    TRAIN_LOSS: "loss",
    val_key("acc"): "acc",
    val_key("hm"): "HM",
    IMAGES_PER_SECOND: "img/s",
    DATA_WAIT: "wait",
}
_WIDTH_WITHOUT_BAR = 80
_LEAST_BAR = 6


class _TimeLeft(ProgressColumn):
    """Remaining time of a task, at its speed so far; of a training over all of its epochs."""

    def render(self, task: Task) -> Text:
        remaining = inf if task.remaining is None else task.remaining
        batches = remaining + (task.total or 0) * task.fields.get("epochs_left", 0)
        if batches == 0:
            return Text("00:00")
        if not isfinite(batches) or not task.speed:
            return Text("--:--")
        minutes, seconds = divmod(round(batches / task.speed), 60)
        return Text(
            f"{minutes:02}:{seconds:02}" if minutes < 100 else f"{minutes // 60}h{minutes % 60:02}m"
        )


class ProgressBar(RichProgressBar):
    """Rich's bar with short names, the epoch's mean loss so far, and the time left for the fit."""

    def __init__(self) -> None:
        # three digits of everything: a loss of 0.0123, an accuracy of 0.975
        super().__init__(theme=RichProgressBarTheme(metrics_format=".3g"))
        self._sum: Tensor | float = 0.0
        self._mean: float | None = None
        self._steps, self._read = 0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the line of an epoch, counted from 1, and with it a new mean of the loss."""
        self._sum, self._steps, self._read = 0.0, 0, 0.0
        if self.progress is None:
            return
        epoch, last = trainer.current_epoch + 1, max(trainer.max_epochs or 0, 0)
        line: dict[str, Any] = {
            "description": f"epoch {epoch}/{last}" if last else f"epoch {epoch}",
            "total": self.total_train_batches,
            "epochs_left": max(last - epoch, 0),
        }
        if self.train_progress_bar_id is None:
            self.train_progress_bar_id = self.progress.add_task(**line)
        else:
            self.progress.reset(self.train_progress_bar_id, visible=True, **line)
        self.refresh()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Begin where an epoch is resumed in its middle: Lightning does not start it again."""
        if self.is_enabled and self.train_progress_bar_id is None:
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Add the loss of a step to the mean, which is read from the device once a second."""
        self._steps += 1
        self._sum = self._sum + outputs["loss"].detach() * trainer.accumulate_grad_batches
        if time.monotonic() - self._read > 1:
            self._mean, self._read = float(self._sum) / self._steps, time.monotonic()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the mean that is logged, over the images of all processes."""
        self._mean = None
        # on all processes, not on the one alone that shows them: callbacks after this one may wait
        # for one another too
        _ = trainer.progress_bar_metrics
        super().on_train_epoch_end(trainer, pl_module)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return loss, accuracy (or harmonic mean), speed and wait for data by short names."""
        metrics = super().get_metrics(trainer, pl_module)
        if self._mean is not None:
            metrics[TRAIN_LOSS] = self._mean
        short: dict[str, Any] = {
            label: metrics[name] for name, label in _NAMES.items() if name in metrics
        }
        if "HM" in short:
            del short["acc"]
        for name in short.keys() & {"loss", "img/s"}:
            value = float(short[name])
            short[name] = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
        if "wait" in short:
            short["wait"] = f"{short['wait']:.0%}"
        return short

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Return label, bar if the console has room for it, batches and time left."""
        label, bar, batches, *_ = super().configure_columns(trainer)
        bar.bar_width = min(40, get_console().width - _WIDTH_WITHOUT_BAR)
        bars = [bar] if bar.bar_width >= _LEAST_BAR else []
        return [label, *bars, batches, _TimeLeft()]
