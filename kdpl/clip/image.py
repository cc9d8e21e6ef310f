"""Image towers of CLIPs: any architecture can encode images, and vision transformers also take prompts."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdpl.clip.block import run_block, run_first_token
from kdpl.clip.identity import Preprocessing
from kdpl.clip.modules import Float32Module, FrozenTower
from kdpl.errors import ConfigError


class Pixels(Float32Module):
    """Normalises images [B, 3, S, S], uint8 in 0..255 or float in [0, 1], on their device and in float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised images, float32."""
        pixels = images.float().div(255) if images.dtype == torch.uint8 else images.float()
        return (pixels - self.mean) / self.std


class ImageTower(FrozenTower):
    """An image tower of any architecture, into a joint embedding of width ``embed_dim``."""

    def __init__(self, visual: nn.Module, preprocessing: Preprocessing, embed_dim: int) -> None:
        super().__init__()
        self.visual: Any = visual
        self.preprocessing = preprocessing
        self.embed_dim = embed_dim
        self.pixels = Pixels(preprocessing)
        self.requires_grad_(False).train()

    def compile_parts(self) -> None:
        """Compile the tower in place; names of weights stay the same."""
        self.visual.compile()

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] into features [B, embed_dim], not normalised."""
        return cast(Tensor, self.visual(self.pixels(images).to(next(self.visual.parameters()).dtype)))


class PromptableImageTower(ImageTower):
    """A CLIP vision transformer that pools by its class token."""

    _compiles = False

    @property
    def blocks(self) -> list[Any]:
        """The transformer's residual blocks, first to last."""
        return list(self.visual.transformer.resblocks)

    @property
    def width(self) -> int:
        """Width W of the tokens."""
        return int(self.visual.conv1.out_channels)

    def cast_weights(self) -> Iterator[nn.Parameter]:
        """Those of every tower, and what ``embed`` adds to the patches in their type."""
        yield from super().cast_weights()
        yield from (self.visual.class_embedding, self.visual.positional_embedding)

    def embed(self, images: Tensor) -> Tensor:
        """Embed images [B, 3, S, S], uint8 or float in [0, 1], as class token and patch tokens [B, 1 + patches, W].

        They have positional embeddings, and have not been through ``ln_pre``.
        """
        visual = self.visual
        patches = visual.conv1(self.pixels(images).to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        return cast(Tensor, torch.cat([class_token, patches], dim=1) + visual.positional_embedding.to(patches.dtype))

    def compile_parts(self) -> None:
        """Compile the blocks in place; they have the same graph, which is compiled once."""
        self._compiles = True

    def run_block(self, layer: int, tokens: Tensor) -> Tensor:
        """Run a block on tokens [B, L, W]; the last one returns only the class token, [B, 1, W]."""
        block = self.blocks[layer]
        if layer == len(self.blocks) - 1:
            return run_first_token(block, tokens)
        return _compiled()(block, tokens) if self._compiles else run_block(block, tokens)

    def norm(self, tokens: Tensor) -> Tensor:
        """Apply ``ln_pre``, which precedes the first block, to tokens [B, L, W]."""
        return cast(Tensor, self.visual.ln_pre(tokens))

    def project(self, tokens: Tensor) -> Tensor:
        """Project the last block's tokens [B, L, W] to image features [B, embed_dim], not normalised."""
        return cast(Tensor, self.visual.ln_post(tokens[:, 0]) @ self.visual.proj)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] into features [B, embed_dim], not normalised, without prompts."""
        tokens = self.norm(self.embed(images))
        for layer in range(len(self.blocks)):
            tokens = self.run_block(layer, tokens)
        return self.project(tokens)


@cache
def _compiled() -> Callable[[nn.Module, Tensor], Tensor]:
    return torch.compile(run_block)


def promptable(tower: ImageTower) -> PromptableImageTower:
    """Narrow a tower to one that takes prompts; a ConfigError for a ResNet, a timm model or another transformer."""
    if not isinstance(tower, PromptableImageTower):
        raise ConfigError(
            f"an image tower of kind {type(tower.visual).__name__} has no tokens that prompts could stand beside: set "
            "vision_prompts.depth to 0, or use a vision transformer of CLIP's kind"
        )
    return tower
