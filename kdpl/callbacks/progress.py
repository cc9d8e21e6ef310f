"""The progress bar: progress, loss, accuracy, speed and wait for data on one line."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
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
