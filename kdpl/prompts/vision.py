"""Deep visual prompts (PromptSRC, arXiv 2307.06948, section 3.1; VPT, arXiv 2203.12119)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdpl.clip.modules import Float32Module
from kdpl.clip.towers.image import ImageTower, promptable
from kdpl.errors import ConfigError
from kdpl.runtime.artifacts import STRICT

INIT_STD = 0.02


@dataclass(frozen=True)
class PromptConfig:
    """Size of the prompts in one tower.

    Attributes:
        length: Prompt tokens per layer, n.
        depth: Number of layers with prompts, J; 0 for none in this tower.
    """

    __pydantic_config__: ClassVar = STRICT  # as part of an artifact

    length: int = 4
    depth: int = 9


class VisionPrompts(Float32Module):
    """Prompts of an image tower's first layers: ``tokens``, float32 [J, n, W], from N(0, 0.02²).

    Layer 0's prompts are appended after class token and patches, without positional embeddings and,
    in the vision transformers of CLIP, before ``ln_pre``; each of the following ``depth - 1``
    layers replaces the last ``length`` tokens by its prompts. From layer ``depth`` on, the tokens
    pass on unchanged.

    Args:
        length: Prompt tokens per layer, n.
        depth: Number of layers with prompts, J; 1 to the number of layers in the tower, or a
            ConfigError.
    """

    def __init__(self, length: int, depth: int, tower: ImageTower) -> None:
        super().__init__()
        tower = promptable(tower)
        require_size(length, depth, len(tower.blocks), "visual")
        self.tokens = nn.Parameter(
            torch.randn(depth, length, tower.width, dtype=torch.float32) * INIT_STD
        )

    def forward(self, tower: ImageTower, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S], uint8 or float in [0, 1]; [B, embed_dim], not normalised."""
        return promptable(tower).with_prompts(images, self.tokens)

    @torch.no_grad()
    def init_at_mean_tokens(self, tower: ImageTower, images: Tensor) -> None:
        """Add the mean patch token that enters the layer to each layer's prompts.

        A deviation from the published initialisation: that starts every prompt near the origin, far
        from the tokens. The drawn noise is kept, and the mean of the unprompted patch tokens over
        ``images`` [N, 3, S, S] is added.
        """
        tower = promptable(tower)
        # in batches, to limit memory
        sums = torch.zeros_like(self.tokens[:, 0])
        for batch in torch.split(images, 32):
            sums += tower.patch_sums(batch, len(sums))
        self.tokens.add_(sums[:, None] / len(images))


def require_size(length: int, depth: int, layers: int, kind: str) -> None:
    """Raise a ConfigError for a length below 1, or a depth outside 1 to the tower's layers."""
    if length < 1 or not 1 <= depth <= layers:
        raise ConfigError(
            f"{kind} prompts of length {length} and depth {depth} do not fit: length must be at "
            f"least 1 and depth 1 to {layers}, the layers of the tower"
        )
