"""Check of a training's steps: a finite loss and finite weights."""

from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from kdpl.errors import TrainingError
from kdpl.module import ClassifyingModule


class FiniteLoss(Callback):
    """Stops training if a term of the loss, or a trained parameter, is not finite.

    The terms of each step stay on the device and are checked together: every few steps, at the end
    of each epoch and before each checkpoint. No step waits for the device, and the existing
    checkpoint is always an earlier one.

    Under ``16-mixed`` the gradient scaler skips steps with overflowing gradients. This is an error
    only if the last ``every_n_steps`` steps were all skipped.
    """

    def __init__(self, every_n_steps: int = 20) -> None:
        self.every_n_steps = every_n_steps
        self._steps: list[tuple[int, dict[str, Tensor]]] = []  # number and terms

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, *_: object
    ) -> None:
        """Keep the terms of the loss, and check them every few steps."""
        self._steps.append((trainer.global_step, cast(ClassifyingModule, pl_module).loss_terms))
        if len(self._steps) >= self.every_n_steps:
            self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check before the epoch's weights are used."""
        self._check(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Check before the checkpoint is written; called on all processes."""
        self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise a TrainingError on all processes if one of them found a non-finite value."""
        problem = self._wrong_loss(trainer) or _wrong_weights(trainer, pl_module)
        self._steps = []
        if trainer.strategy.reduce_boolean_decision(problem is not None, all=False):
            raise TrainingError(
                problem or "training was stopped by another process: its message says why"
            )

    def _wrong_loss(self, trainer: Trainer) -> str | None:
        if not self._steps:
            return None
        # find the steps with a non-finite term, in one transfer from the device
        values = torch.stack([torch.stack([*terms.values()]) for _, terms in self._steps])
        wrong = (~values.isfinite().all(dim=1)).cpu().nonzero().flatten().tolist()
        # a gradient scaler skips some of them
        skips = getattr(trainer.precision_plugin, "scaler", None) is not None
        least = max(len(self._steps), self.every_n_steps) if skips else 1
        if len(wrong) < least:
            return None
        # report the first
        number, terms = self._steps[wrong[0]]
        listed = ", ".join(f"{k} is {float(v)}" for k, v in terms.items() if not v.isfinite())
        return (
            f"the loss of step {number} is not finite ({listed}): lower model.init_args.optim.lr, "
            "or set trainer.precision to 32-true, and start in another --out"
        )


def _wrong_weights(trainer: Trainer, pl_module: LightningModule) -> str | None:
    trained = [p.detach().isfinite().all() for p in pl_module.parameters() if p.requires_grad]
    if not trained or bool(torch.stack(trained).all()):
        return None
    return (
        f"trained parameters are not finite after step {trainer.global_step}: lower "
        "model.init_args.optim.lr and start in another --out"
    )
