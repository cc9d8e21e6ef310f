"""Visual prompts computed from the text prompts (MaPLe, arXiv 2210.03117, section 3.2.3)."""

from typing import Any

import torch
from torch import Tensor, nn

from kdpl.clip.clip import ImageClip
from kdpl.clip.towers.image import promptable
from kdpl.errors import ConfigError
from kdpl.prompts import IndependentPrompts, PromptConfig, PromptMethod
from kdpl.prompts.vision import require_size


class CoupledPrompts(IndependentPrompts):
    """Text prompts, and learnt linear maps from them to the visual prompts of the same layer.

    Layer 0's visual prompts come from the context. They enter the image tower as ``VisionPrompts``
    do. The mapped visual prompts are saved, so stage 2 reads ``IndependentPrompts``. The ``maps``
    are a Linear(W_t, W_v) with bias for each of the J layers, with the initialisation of torch.

    Raises:
        ConfigError: The sizes of visual and text prompts differ, or do not fit the CLIP.
    """

    def __init__(
        self, vision: PromptConfig, text: PromptConfig, context: str | None, clip: ImageClip
    ) -> None:
        if vision != text:
            raise ConfigError(
                "coupled prompts have one size in both towers, but vision_prompts has length "
                f"{vision.length} and depth {vision.depth}, text_prompts {text.length} and "
                f"{text.depth}: make them equal, or set method to independent"
            )
        super().__init__(PromptConfig(depth=0), text, context, clip)
        self.vision_config = vision
        self.maps = nn.ModuleList()
        if self.text_prompts is not None:
            tower, width = promptable(clip.image_tower), self.text_prompts.context.shape[1]
            require_size(text.length, text.depth, len(tower.blocks), "visual")
            self.maps.extend(
                nn.Linear(width, tower.width, dtype=torch.float32) for _ in range(text.depth)
            )

    @property
    def tokens(self) -> Tensor | None:
        """The visual prompts of the current text prompts, float32 [J, n, W_v], or None."""
        if self.text_prompts is None:
            return None
        layers = [self.text_prompts.context, *self.text_prompts.deep]
        # without autocast, or they would differ from the prompts that stage 2 reads
        with torch.autocast(layers[0].device.type, enabled=False):
            return torch.stack(
                [mapped(layer) for mapped, layer in zip(self.maps, layers, strict=True)]
            )

    def saved(self) -> dict[str, Tensor]:
        """Return copies of the text prompts and of the visual prompts computed from them."""
        tensors = {k: v for k, v in super().saved().items() if not k.startswith("maps.")}
        tokens = self.tokens
        if tokens is not None:
            tensors["vision_prompts.tokens"] = tokens.detach().clone()
        return tensors

    @classmethod
    def restore(cls, *arguments: Any) -> PromptMethod:
        """Build independent prompts that encode the same features."""
        return IndependentPrompts.restore(*arguments)
