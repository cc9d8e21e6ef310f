"""The choice of α and β, by which a student with labels mixes its two heads, at the end of a fit."""

from itertools import product
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from kdpl.prompts.label_head import mix_heads
from kdpl.runtime.messages import inform

MIXES = [(0.0, 1.0), *product((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), (0.5, 1.0, 2.0, 4.0)), (1.0, 1.0)]
"""Pairs (α, β) to choose from."""


class MixChoice(Metric):
    """The pair of ``MIXES`` with the smallest log loss over labelled images, on all processes together."""

    full_state_update = False
    losses: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("losses", torch.zeros(len(MIXES), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, label_logits: Tensor, labels: Tensor) -> None:
        """Add a batch of logits of both heads, [B, C], and labels [B]."""
        logits, label_logits = logits.double(), label_logits.double()
        for i, (alpha, beta) in enumerate(MIXES):
            self.losses[i] += F.nll_loss(mix_heads(logits, label_logits, alpha, beta), labels, reduction="sum")

    def compute(self) -> tuple[float, float]:
        """Return (α, β)."""
        return MIXES[int(self.losses.argmin())]


class MixHeads(Callback):
    """Chooses α and β with the smallest log loss on the validation images, for the weights that are the result.

    They become part of the checkpoint of the fit's last epoch. Without validation images they stay 0.5 and 1.
    """

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last epoch choose on all processes together."""
        last = trainer.current_epoch + 1 == trainer.max_epochs or 0 <= trainer.max_steps <= trainer.global_step
        if not (trainer.should_stop or last):
            return
        data, student = trainer.datamodule, cast(Any, pl_module)  # type: ignore[attr-defined]
        head, loader = student.label_head, data.val_dataloader()
        choice, how = MixChoice().to(student.device), "as there are no validation images"
        student.eval()
        for batch in loader:
            images, labels, _ = trainer.strategy.batch_to_device(batch)
            with trainer.precision_plugin.forward_context():
                features = student.encoder(images)
                logits = student.head.module(features, student.logit_scale)
            choice.update(logits, head(features), labels)
        student.train()
        if loader:
            (head.alpha, head.beta), how = choice.compute(), "chosen by log loss on the validation images"
        inform(f"label head: α = {head.alpha:g} and β = {head.beta:g}, {how}")
