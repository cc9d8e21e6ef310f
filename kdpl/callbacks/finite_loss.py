"""Check of a training: finite weights, and a gradient scaler that does not skip all steps."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kdpl.errors import TrainingError

_EVERY_N_STEPS = 20
_LEAST_SCALE = 1e-6  # the scaler begins at 65536, and halves with each step that it skips


class FiniteLoss(Callback):
    """Stops training if a trained parameter is not finite, as after a loss that is not.

    They are checked every few steps, at the end of each epoch and before each checkpoint. Other
    steps do not wait for the device, and the existing checkpoint is always an earlier one.

    Under ``16-mixed`` the gradient scaler skips steps with overflowing gradients, which keeps the
    parameters. This is an error only if it has skipped nearly all steps.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check every few steps."""
        if (batch_idx + 1) % _EVERY_N_STEPS == 0:
            self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: Any = None
    ) -> None:
        """Raise a TrainingError on all processes if one of them has a non-finite value.

        Called before the epoch's weights are used or written.
        """
        trained = [p.detach().isfinite().all() for p in pl_module.parameters() if p.requires_grad]
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        wrong = bool(trained) and not bool(torch.stack(trained).all())
        wrong = wrong or (scaler is not None and scaler.get_scale() < _LEAST_SCALE)
        if trainer.strategy.reduce_boolean_decision(wrong, all=False):
            raise TrainingError(
                f"the loss or its gradients are not finite after step {trainer.global_step}: lower "
                "model.init_args.optim.lr, or set trainer.precision to 32-true, and start in "
                "another --out"
            )

    on_save_checkpoint = on_train_epoch_end
