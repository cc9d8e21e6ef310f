"""Optimiser and per-epoch learning-rate schedule of both stages, as published with PromptSRC and PromptKD."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kdpl.errors import ConfigError


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser settings; the defaults are the published ones for a ViT-L/14 teacher.

    Attributes:
        optimizer: ``sgd`` (the published choice) or ``adamw``.
        lr: Peak learning rate.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty of SGD, or decoupled weight decay of AdamW.
        warmup_lr: Constant learning rate of the first epoch.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.005
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_lr: float = 1e-5


def learning_rate(epoch: int, epochs: int, lr: float, warmup_lr: float) -> float:
    """Compute the learning rate of an epoch: ``warmup_lr`` in epoch 0, then a cosine that lags by one epoch.

    From epoch 1 on it is lr/2 · (1 + cos(π(epoch − 1)/E)), with the peak ``lr`` and E ``epochs``.
    """
    return warmup_lr if epoch == 0 else lr / 2 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def build_optimizer(
    parameters: Iterable[Parameter], config: OptimConfig, epochs: int | None
) -> OptimizerLRSchedulerConfig:
    """Build the optimiser over those parameters that require gradients, with the schedule stepped once per epoch.

    Raises:
        ConfigError: The number of epochs is unknown, or a learning rate is out of range.
    """
    if epochs is None or epochs < 0:
        raise ConfigError("the learning-rate schedule needs the number of epochs: set trainer.max_epochs")
    if config.lr <= 0 or config.warmup_lr < 0:
        raise ConfigError(
            f"optim.lr is {config.lr} and optim.warmup_lr {config.warmup_lr}: lr must be above 0, warmup_lr 0 or more"
        )
    trained = [p for p in parameters if p.requires_grad]
    optimizer: Optimizer
    if config.optimizer == "sgd":
        optimizer = SGD(trained, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    else:
        optimizer = AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
    schedule = LambdaLR(optimizer, lambda e: learning_rate(e, epochs, config.lr, config.warmup_lr) / config.lr)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}
