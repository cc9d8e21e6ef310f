"""Optimiser and learning-rate schedule of both stages: per epoch, as published, or per step."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

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
        warmup_steps: For networks that are trained as a whole: steps over which the learning rate
            rises linearly, before it falls to 0 along a cosine over the other steps. None: the
            published schedule, one step per epoch.
        decay_vectors: Apply weight decay to biases and the scales of norms too.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.005
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_lr: float = 1e-5
    warmup_steps: int | None = None
    decay_vectors: bool = True


def learning_rate(epoch: int, epochs: int, lr: float, warmup_lr: float) -> float:
    """Compute an epoch's learning rate: ``warmup_lr`` in epoch 0, then a cosine one epoch behind.

    From epoch 1 on it is lr/2 · (1 + cos(π(epoch − 1)/E)), with the peak ``lr`` and E ``epochs``.
    """
    return warmup_lr if epoch == 0 else lr / 2 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def step_factor(step: int, steps: float, warmup: int) -> float:
    """Compute the learning rate of a step as a share of the peak.

    It is (s + 1)/W in the warm-up of W steps, then a cosine ½ · (1 + cos(π(s − W)/(S − W))) over
    S ``steps``.
    """
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))) / 2


def build_optimizer(
    parameters: Iterable[Parameter],
    config: OptimConfig,
    epochs: int | None,
    steps: Callable[[], float],
) -> OptimizerLRSchedulerConfig:
    """Build the optimiser over the parameters that require gradients, and its schedule.

    ``steps``, for ``warmup_steps``, returns the number of steps of the training; it is called after
    the warm-up.
    """
    if epochs is None or epochs < 0:
        raise ConfigError(
            "the learning-rate schedule needs the number of epochs: set trainer.max_epochs"
        )
    if config.lr <= 0 or config.warmup_lr < 0 or (config.warmup_steps or 0) < 0:
        raise ConfigError(
            f"optim.lr is {config.lr}, optim.warmup_lr {config.warmup_lr} and optim.warmup_steps "
            f"{config.warmup_steps}: lr must be above 0, the others 0 or more"
        )
    # parameter groups
    trained: list[Any] = [p for p in parameters if p.requires_grad]
    if not config.decay_vectors:
        matrices = [p for p in trained if p.ndim >= 2]
        vectors = [p for p in trained if p.ndim < 2]
        trained = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    # the optimiser
    optimizer: Optimizer
    if config.optimizer == "sgd":
        optimizer = SGD(
            trained, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    else:
        optimizer = AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
    # the schedule, stepped per epoch or per step
    warmup = config.warmup_steps

    def factor(index: int) -> float:
        if warmup is not None:
            return step_factor(index, steps() if index > warmup else math.inf, warmup)
        return learning_rate(index, epochs, config.lr, config.warmup_lr) / config.lr

    interval = "epoch" if warmup is None else "step"
    schedule = LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": interval}}
