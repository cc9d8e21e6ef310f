"""Gaussian prompt averaging (PromptSRC, arXiv 2307.06948, section 3.2.2)."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kdpl.errors import ConfigError


def gaussian_weights(epochs: int, mean: float, std: float) -> list[float]:
    """Return the weights w_e ∝ N(e; mean, std) of epochs e = 1..epochs, which sum to 1."""
    densities = [math.exp(-0.5 * ((e - mean) / std) ** 2) for e in range(1, epochs + 1)]
    total = sum(densities)
    if total == 0:
        raise ConfigError(
            f"prompt averaging around epoch {mean} ± {std} has no weight in epochs 1 to {epochs}: "
            "set averaging.mean within the training"
        )
    return [d / total for d in densities]


class GaussianPromptAveraging(Callback):
    """Adds the trained parameters to a sum after each epoch; the sum replaces them at the end.

    The sum is part of checkpoints, so a resumed run ends with the same prompts. ``mean`` and
    ``std`` of the weights are in epochs.

    The last validation uses the prompts of the last epoch alone, since Lightning validates before
    an epoch ends. The last checkpoint has the average, since callbacks that save come after all
    others.
    """

    def __init__(self, mean: float, std: float) -> None:
        self.mean = mean
        self.std = std
        self.sums: dict[str, Tensor] = {}
        self._weights: list[float] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compute the weights, or raise a ConfigError before any training."""
        if stage == "fit":
            if not trainer.max_epochs or trainer.max_epochs < 1:
                raise ConfigError(
                    "prompt averaging needs to know the number of epochs: set trainer.max_epochs"
                )
            self._weights = gaussian_weights(trainer.max_epochs, self.mean, self.std)
            # without the last epoch the sum would be incomplete
            if trainer.early_stopping_callbacks or trainer.max_steps >= 0:
                raise ConfigError(
                    "prompt averaging ends with the last epoch, and EarlyStopping or "
                    "trainer.max_steps may end the training before: remove them, or set averaging "
                    "to null"
                )

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add this epoch's prompts; after the last epoch replace them with the average."""
        weight = self._weights[trainer.current_epoch]
        last = trainer.current_epoch == len(self._weights) - 1
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                so_far, now = self.sums.get(name), parameter.detach() * weight
                self.sums[name] = now if so_far is None else so_far.to(now.device) + now
                if last:
                    parameter.copy_(self.sums[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the running sum."""
        return {"sums": self.sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the running sum of a checkpoint."""
        self.sums = state_dict["sums"]
