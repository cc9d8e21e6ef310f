"""Image towers of CLIPs: all architectures encode images, vision transformers also take prompts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdpl.clip.block import run_block, run_first_token
from kdpl.clip.identity import Preprocessing
from kdpl.clip.memory_format import memory_format_of
from kdpl.clip.modules import Float32Module, FrozenTower
from kdpl.errors import ConfigError


class Pixels(Float32Module):
    """Normalisation of images [B, 3, S, S], in float32 on their device.

    Images are uint8 in 0..255, or float in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.register_buffer(
            "mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised images, float32."""
        pixels = images.float().div(255) if images.dtype == torch.uint8 else images.float()
        return (pixels - self.mean) / self.std


class ImageTower(FrozenTower):
    """An image tower of any architecture.

    ``config`` is the image part of its model config in open_clip's form.
    """

    def __init__(
        self, visual: nn.Module, preprocessing: Preprocessing, config: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.visual: Any = visual
        self.preprocessing = preprocessing
        self.config = {
            key: config[key] for key in ("embed_dim", "vision_cfg", "quick_gelu") if key in config
        }
        self.pixels = Pixels(preprocessing)
        self.memory_format = torch.contiguous_format
        self.use_memory_format(memory_format_of(visual))
        self.requires_grad_(False).train()

    @property
    def embed_dim(self) -> int:
        """Width D of the features."""
        return int(self.config["embed_dim"])

    def use_memory_format(self, memory_format: torch.memory_format) -> None:
        """Store the weights of convolutions in a format, and compute in it."""
        if memory_format != self.memory_format:
            self.memory_format = memory_format
            self.visual.to(memory_format=memory_format)

    def compile_parts(self) -> None:
        """Compile the tower in place; names of weights stay the same."""
        self.visual.compile()

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] into features [B, embed_dim], not normalised."""
        pixels = self.pixels(images).to(next(self.visual.parameters()).dtype)
        if self.memory_format == torch.channels_last:
            pixels = pixels.contiguous(memory_format=self.memory_format)
        return cast(Tensor, self.visual(pixels))


class PromptableImageTower(ImageTower, ABC):
    """An image tower whose blocks take tokens [B, L, W], beside which prompts can stand."""

    @property
    @abstractmethod
    def blocks(self) -> list[Any]:
        """The transformer's residual blocks, first to last."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Width W of the tokens."""

    @abstractmethod
    def with_prompts(self, images: Tensor, prompts: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] with prompts [J, n, W] in the first J blocks: [B, embed_dim].

        Layer 0's prompts are appended to the tokens of the image; at the next layers they are
        replaced by that layer's.
        """

    @abstractmethod
    def patch_sums(self, images: Tensor, depth: int) -> Tensor:
        """Sum the mean patch token over images [B, 3, S, S] at each layer's prompts: [J, W].

        The sums are taken where the prompts of each layer enter.
        """


class ClassTokenTower(PromptableImageTower):
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
        """Yield the weights of every tower, attention biases, and what ``embed`` adds.

        ``embed`` adds it to the patches in their type.
        """
        yield from super().cast_weights()
        yield from (block.attn.in_proj_bias for block in self.blocks)
        yield from (self.visual.class_embedding, self.visual.positional_embedding)

    def embed(self, images: Tensor) -> Tensor:
        """Embed images [B, 3, S, S] as a class token and patch tokens [B, 1 + patches, W].

        Images are uint8, or float in [0, 1].

        They have positional embeddings, and have not been through ``ln_pre``.
        """
        visual = self.visual
        patches = (
            visual.conv1(self.pixels(images).to(visual.conv1.weight.dtype))
            .flatten(2)
            .transpose(1, 2)
        )
        class_token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        return cast(
            Tensor,
            torch.cat([class_token, patches], dim=1)
            + visual.positional_embedding.to(patches.dtype),
        )

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
        """Project the last block's tokens [B, L, W] to unnormalised features [B, embed_dim]."""
        return cast(Tensor, self.visual.ln_post(tokens[:, 0]) @ self.visual.proj)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] into unnormalised features [B, embed_dim], without prompts."""
        tokens = self.norm(self.embed(images))
        for layer in range(len(self.blocks)):
            tokens = self.run_block(layer, tokens)
        return self.project(tokens)

    def with_prompts(self, images: Tensor, prompts: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] with prompts [J, n, W]; the first enter before ``ln_pre``."""
        depth, length, _ = prompts.shape
        x = self.embed(images)
        prompts = prompts.to(x.dtype)
        x = self.norm(torch.cat([x, prompts[0].expand(x.shape[0], -1, -1)], dim=1))
        for layer in range(len(self.blocks)):
            if 0 < layer < depth:
                x = torch.cat(
                    [x[:, :-length], prompts[layer].to(x.dtype).expand(x.shape[0], -1, -1)], dim=1
                )
            x = self.run_block(layer, x)
        return self.project(x)

    def patch_sums(self, images: Tensor, depth: int) -> Tensor:
        """Sum the mean patch token over images [B, 3, S, S] at the first J layers: [J, W]."""
        x = self.embed(images)
        sums = []
        for layer in range(depth):
            # layer 0's prompts enter before ln_pre, so their mean is taken there
            sums.append(x[:, 1:].float().mean(dim=1).sum(dim=0))
            if layer < depth - 1:
                x = self.run_block(layer, self.norm(x) if layer == 0 else x)
        return torch.stack(sums)


@cache
def _compiled() -> Callable[[nn.Module, Tensor], Tensor]:
    return torch.compile(run_block)


def promptable(tower: ImageTower) -> PromptableImageTower:
    """Narrow a tower to one that takes prompts; a ConfigError for a convolutional network."""
    if not isinstance(tower, PromptableImageTower):
        raise ConfigError(
            f"an image tower of kind {type(tower.visual).__name__} has no tokens that prompts "
            "could stand beside: set vision_prompts.depth to 0, or use a vision transformer"
        )
    return tower
