"""A student's run is not resumed with other images than it began with."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kdpl.errors import ConfigError

# as a checkpoint holds it
Noted = bool | tuple[int, int | None]


class Unchanged(Callback):
    """Notes something of a student's images in checkpoints, and refuses to resume with another.

    Args:
        key: Its name in checkpoints.
        now: Returns what it is in a fit.
        fault: Returns the message for what it was and what it is now.
    """

    def __init__(
        self, key: str, now: Callable[[Trainer], Noted], fault: Callable[[Any, Any], str]
    ) -> None:
        self.key, self.now, self.fault = key, now, fault
        self._before: Noted | None = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note it."""
        checkpoint[self.key] = self.now(trainer)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep it until the fit starts: callbacks may change the images, or fill a cache."""
        self._before = checkpoint.get(self.key)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare; a ConfigError if they differ."""
        before, now = self._before, self.now(trainer)
        if before not in (None, now):
            raise ConfigError(self.fault(before, now))
