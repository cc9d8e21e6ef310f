"""A resumed fit takes as many images a step as before, on any number of devices."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kdpl.errors import ConfigError


class SameSteps(Callback):
    """Keeps in the checkpoint how many images all processes together take in a step, and refuses to resume with others.

    Learning rate and schedule were chosen for those, and an interrupted epoch would see some images twice or not at
    all.
    """

    def __init__(self) -> None:
        self._batch_size = 0
        self._processes = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the images of a step, for a fit."""
        batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
        if stage == "fit" and isinstance(batch_size, int):
            self._batch_size, self._processes = batch_size, trainer.world_size

    def state_dict(self) -> dict[str, Any]:
        """Return the images of a step."""
        return {"images_per_step": self._batch_size * self._processes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the images of a step in a checkpoint.

        Raises:
            ConfigError: They differ.
        """
        before, now = state_dict["images_per_step"], self._batch_size * self._processes
        if 0 in (before, now) or before == now:
            return
        each, rest = divmod(before, self._processes)
        remedy = (
            f"set trainer.devices to a number that divides {before}"
            if rest
            else f"set data.init_args.batch_size to {each}"
        )
        several = f" ({self._batch_size} on each of {self._processes} processes)" if self._processes > 1 else ""
        raise ConfigError(f"the run took {before} images a step, and would take {now}{several} now: {remedy}")
