"""Visual prompts that follow from the text prompts (MaPLe, arXiv 2210.03117, section 3.2.3)."""

import torch
from torch import Tensor, nn

from kdpl.clip.float32 import Float32Module
from kdpl.clip.image import ImageTower, promptable
from kdpl.prompts.text import TextPrompts
from kdpl.prompts.vision import encode_with_tokens, require_size


class CoupledPrompts(Float32Module):
    """Maps each layer's text prompts to the visual prompts of the same layer of an image tower.

    There are as many visual prompts as text prompts, in as many layers; layer 0's come from the context. How they
    enter the tower is as with ``VisionPrompts``.

    Args:
        text_prompts: The prompts that are mapped, n of width W_t in each of J layers; they stay their owner's.
        tower: The image tower that the visual prompts are for, of width W_v.

    Attributes:
        maps: A Linear(W_t, W_v) with bias for each layer, J of them, as torch starts them.

    Raises:
        ConfigError: The text prompts are in more layers than the image tower has.
    """

    text_prompts: TextPrompts

    def __init__(self, text_prompts: TextPrompts, tower: ImageTower) -> None:
        super().__init__()
        vision, depth = promptable(tower), 1 + len(text_prompts.deep)
        length, text_width = text_prompts.context.shape
        require_size(length, depth, vision)
        # not through nn.Module's __setattr__, which would make them parameters of this module as well
        object.__setattr__(self, "text_prompts", text_prompts)
        self.maps = nn.ModuleList(nn.Linear(text_width, vision.width, dtype=torch.float32) for _ in range(depth))

    @property
    def tokens(self) -> Tensor:
        """The visual prompts as they follow from the text prompts now, float32 [J, n, W_v]."""
        layers = [self.text_prompts.context, *self.text_prompts.deep]
        # or these would be other prompts under autocast than those that stage 2 reads
        with torch.autocast(layers[0].device.type, enabled=False):
            return torch.stack([mapped(layer) for mapped, layer in zip(self.maps, layers, strict=True)])

    def forward(self, tower: ImageTower, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S], uint8 or float in [0, 1]; features [B, embed_dim], not normalised."""
        return encode_with_tokens(promptable(tower), images, self.tokens)
