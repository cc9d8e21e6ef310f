"""The text tower on class names with learnt prompts, forward and backward: the larger part of stage 1."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.distillation import KDPL, PUBLISHED, gradients
from benchmarks.measuring import flops
from benchmarks.sizes import CONTEXT, Sizes, text_half
from benchmarks.teacher import load_random
from examples.plain import text_features
from kdpl.prompts import TextPrompts
from kdpl.prompts.text import prompt_texts, tokenize_prompts


class Texts:
    """Both sides of encoding class names, on the same text tower and prompts.

    Args:
        sizes: The teacher and its prompts.
        classes: Number of class names.
        device: The device.
        autocast: Dtype of frozen arithmetic under autocast; None for float32.
    """

    def __init__(
        self, sizes: Sizes, classes: int, device: torch.device, autocast: torch.dtype | None = None
    ) -> None:
        torch.manual_seed(0)
        clip = load_random(text_half(sizes.teacher))
        names = sizes.names(classes)
        self.device = device
        self.autocast = autocast
        self.tower = clip.text_tower.to(device)
        self.prompts = TextPrompts(
            sizes.prompt_length, sizes.prompt_depth, CONTEXT, clip.text_tower, clip.tokenize
        ).to(device)
        self.ids = clip.tokenize(prompt_texts(CONTEXT, sizes.prompt_length, names)).to(device)
        self.arranged = tokenize_prompts(
            clip.tokenize, prompt_texts(CONTEXT, sizes.prompt_length, names), self.tower
        )
        self.direction = torch.randn(classes, clip.image_tower.embed_dim).to(device)

    def forward_and_backward(self, side: str) -> dict[str, Tensor]:
        """Encode the names; returns features, and gradients of the prompts by name."""
        parameters = dict(self.prompts.named_parameters())
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            features = self._features(side)
        return {
            "features": features.detach(),
            **gradients((features * self.direction).sum(), parameters),
        }

    def runner(self, side: str) -> Callable[[], object]:
        """Return a function that encodes the names, forward and backward."""
        return lambda: self.forward_and_backward(side)

    def flops(self, side: str) -> int:
        """Count the floating-point operations of a side, forward and backward."""
        return flops(self.runner(side))

    def _features(self, side: str) -> Tensor:
        if side == PUBLISHED:
            layers = torch.cat([self.prompts.context[None], self.prompts.deep])
            return text_features(self.tower, self.ids, layers)
        if side == KDPL:
            return self.prompts(self.tower, self.arranged)
        raise ValueError(side)
