"""The progress bar: where the training is, its loss, its accuracies and its speed, on one line."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from rich import get_console
from rich.progress import BarColumn

_NAMES = {"train/loss": "loss", "val/acc": "acc", "val/hm": "HM", "train/images_per_s": "images/s"}
_WIDTH_WITHOUT_BAR = 72


class ProgressBar(RichProgressBar):
    """Rich's bar with short names, so that a line of 80 characters holds it all."""

    def __init__(self) -> None:
        # three digits of everything: a loss of 0.0123, an accuracy of 0.975, 1.23e+03 images a second
        super().__init__(theme=RichProgressBarTheme(metrics_format=".3g"))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Give loss, accuracy (the harmonic mean where there is one) and speed by short names."""
        metrics = super().get_metrics(trainer, pl_module)
        short: dict[str, Any] = {label: metrics[name] for name, label in _NAMES.items() if name in metrics}
        if "HM" in short:
            del short["acc"]
        if "images/s" in short:
            short["images/s"] = f"{short['images/s']:.0f}"
        return short

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Fit the bar into the line, and leave out the steps a second: images a second say the same."""
        columns = list(super().configure_columns(trainer)[:-1])
        for column in columns:
            if isinstance(column, BarColumn):
                column.bar_width = max(6, min(40, get_console().width - _WIDTH_WITHOUT_BAR))
        return columns
