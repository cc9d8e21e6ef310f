"""The choice of α and β, by which a student with labels mixes its two heads, at the end of a fit."""

from itertools import product
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from kdpl.callbacks.choice import is_last_epoch
from kdpl.prompts.label_head import mix_heads
from kdpl.runtime.messages import inform

MIXES = [(0.0, 1.0), *product((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), (0.5, 1.0, 2.0, 4.0)), (1.0, 1.0)]
"""Pairs (α, β) to choose from."""


def mix_losses(logits: Tensor, label_logits: Tensor, labels: Tensor) -> Tensor:
    """Sum the log loss of labels [B] over images for each pair of ``MIXES``, float64; logits of both heads [B, C]."""
    logits, label_logits = logits.double(), label_logits.double()
    mixed = (mix_heads(logits, label_logits, *pair) for pair in MIXES)
    return torch.stack([F.nll_loss(each, labels, reduction="sum") for each in mixed])


class MixHeads(Callback):
    """Chooses α and β with the smallest log loss on the validation images, for the weights that are the result.

    They become part of the checkpoint of the fit's last epoch. Without validation images they stay 0.5 and 1.
    """

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last epoch choose on all processes together."""
        if not is_last_epoch(trainer):
            return
        data, student = trainer.datamodule, cast(Any, pl_module)  # type: ignore[attr-defined]
        head = student.label_head
        losses, images = (torch.zeros(n, dtype=torch.float64, device=student.device) for n in (len(MIXES), 1))
        student.eval()
        for batch in data.val_dataloader():
            views, labels, _ = trainer.strategy.batch_to_device(batch)
            with trainer.precision_plugin.forward_context():
                features = student.encoder(views)
                logits = student.head.module(features, student.logit_scale)
            losses += mix_losses(logits, head(features), labels)
            images += len(labels)
        student.train()
        # also where this process has no image: the others wait for it
        losses, images = (trainer.strategy.reduce(each, reduce_op="sum") for each in (losses, images))
        how = "as there are no validation images"
        if images:
            (head.alpha, head.beta), how = MIXES[int(losses.argmin())], "chosen by log loss on the validation images"
        inform(f"label head: α = {head.alpha:g} and β = {head.beta:g}, {how}")
