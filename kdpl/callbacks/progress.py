"""Progress on one line: epoch, loss, accuracy, speed, and the time left for the fit."""

from datetime import timedelta
from math import isfinite
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich import get_console
from rich.progress import ProgressColumn, Task
from rich.text import Text

from kdpl.metrics import ACC, DATA_WAIT, HM, IMAGES_PER_SECOND, TRAIN_LOSS, val_key

_NAMES = {
    TRAIN_LOSS: "loss",
    val_key(ACC): "acc",
    val_key(HM): "HM",
    IMAGES_PER_SECOND: "img/s",
    DATA_WAIT: "wait",
}
_LEAST_WIDTH = 120  # columns of a console with room for the bar itself


class _TimeLeft(ProgressColumn):
    """Remaining time of a task, at its speed so far; of a training over all of its epochs."""

    def __init__(self, bar: RichProgressBar) -> None:
        super().__init__()
        self._bar = bar

    def render(self, task: Task) -> Text:
        trainer, batches = self._bar.trainer, task.remaining or 0
        if task.id == self._bar.train_progress_bar_id:
            epochs = (trainer.max_epochs or 0) - trainer.current_epoch - 1
            batches += (task.total or 0) * max(epochs, 0)
        # the speed is not known where steps take longer than half a minute
        speed = task.speed or (task.completed / task.elapsed if task.elapsed else 0)
        label = "" if get_console().is_terminal else " left"
        if batches and (not speed or not isfinite(batches)):
            return Text(f"-:--:--{label}")
        return Text(f"{timedelta(seconds=round(batches / (speed or 1)))}{label}")


class ProgressBar(RichProgressBar):
    """Rich's bar with short names, and the time left for the fit."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the mean that is logged, over the images of all processes."""
        # on all processes, not on the one alone that shows them: callbacks after this one may wait
        # for one another too
        _ = trainer.progress_bar_metrics
        super().on_train_epoch_end(trainer, pl_module)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return loss, accuracies, speed and wait for data by short names, with three digits."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        values = {label: metrics[name] for name, label in _NAMES.items() if name in metrics}
        return {label: f"{v:.0f}" if v >= 100 else f"{v:.3g}" for label, v in values.items()}

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Return label, bar if the console has room for it, batches and time left."""
        label, bar, batches, *_ = super().configure_columns(trainer)
        bars = [bar] if get_console().width >= _LEAST_WIDTH else []
        return [label, *bars, batches, _TimeLeft(self)]
