"""A step of stage 1: PromptSRC's loss on labelled images, with random weights."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measuring import flops
from benchmarks.settings import Settings
from benchmarks.sizes import CONTEXT
from benchmarks.teacher import random_weights_are_meant
from kdpl import TeacherPromptTuning
from kdpl.clip import RANDOM, ClipConfig, store_frozen
from kdpl.data.batches import LabeledBatch
from kdpl.optim import OptimConfig, build_optimizer
from kdpl.prompts import PromptConfig


class Tuning:
    """A step of stage 1 on one batch.

    Args:
        settings: Models, batch size, device and precision.
        classes: Number of class names.
    """

    def __init__(self, settings: Settings, classes: int) -> None:
        torch.manual_seed(0)
        self.settings = settings
        sizes, device = settings.sizes, settings.torch_device
        prompts = PromptConfig(sizes.prompt_length, sizes.prompt_depth)
        with random_weights_are_meant():
            teacher = TeacherPromptTuning(
                ClipConfig(sizes.teacher, RANDOM),
                CONTEXT,
                vision_prompts=prompts,
                text_prompts=prompts,
            )
        teacher.to(device)
        store_frozen(teacher, settings.autocast or torch.float32)
        tower, names = teacher.text_tower.module, sizes.names(classes)
        teacher.arranged_texts = teacher.prompts.arrange(names, tower, teacher.tokenize)
        # instead of the features of 60 templates, which a fit computes once before its first step
        width = tower.text_projection.shape[1]
        teacher.register_buffer(
            "ensemble_text_features", F.normalize(torch.randn(classes, width), dim=-1).to(device)
        )
        # there is no trainer to log to
        teacher.log = teacher.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
        edge = teacher.resizing.image_size
        images = torch.randint(
            256, (settings.batch_size, 3, edge, edge), dtype=torch.uint8, device=device
        )
        labels = torch.arange(settings.batch_size, device=device) % classes
        self.teacher = teacher
        self.batch = LabeledBatch(images, labels)

    def step(self) -> Callable[[], None]:
        """Return a function that runs one training step: forward, backward and update."""
        optimizer = build_optimizer(self.teacher.parameters(), OptimConfig(), 1, lambda: 1)[
            "optimizer"
        ]

        def run() -> None:
            optimizer.zero_grad()
            self._loss().backward()
            optimizer.step()

        return run

    def flops(self) -> int:
        """Count the floating-point operations of a step."""
        operations = flops(lambda: self._loss().backward())
        self.teacher.zero_grad()
        return operations

    def _loss(self) -> Tensor:
        with self.settings.precise():
            return self.teacher.training_step(self.batch, 0)
