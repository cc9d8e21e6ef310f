"""The two towers of a CLIP, taken apart so that prompts can be put between their layers.

Both are frozen: no parameter of theirs takes a gradient, and ``train()`` cannot flip them. They
wrap the modules of an ``open_clip.CLIP`` and own no weights of their own. An image tower of any
architecture can be encoded with; a vision transformer can be prompted as well.
"""

from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from kdpl.clip_identity import Preprocessing
from kdpl.errors import ConfigError
from kdpl.float32 import Float32Module

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Frozen(nn.Module, Generic[ModuleT]):
    """Carries a module along without making it part of the owner's state.

    The module moves with its owner between devices and dtypes, but its weights are not in the
    owner's ``state_dict()`` or ``parameters()``: checkpoints, optimisers and DistributedDataParallel
    do not see them. It stays in evaluation mode.

    Args:
        module: The module to carry; its parameters stop requiring gradients.
    """

    module: ModuleT

    def __init__(self, module: ModuleT) -> None:
        super().__init__()
        # not through nn.Module's __setattr__, which would register it as a child
        object.__setattr__(self, "module", module.eval().requires_grad_(False))

    def _apply(self, fn: Any, recurse: bool = True) -> "Frozen[ModuleT]":  # noqa: ANN401
        self.module._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class Trained(Float32Module, Generic[ModuleT]):
    """Owns a tower to be trained as a whole: in float32, and part of the owner's state.

    Statistics of batch norms and dropout stay as in evaluation: a tower's ``train()`` does not flip it.

    Args:
        module: The tower; its parameters start requiring gradients.
    """

    module: ModuleT

    def __init__(self, module: ModuleT) -> None:
        super().__init__()
        self.module = module.requires_grad_(True)


class _FrozenTower(nn.Module):
    def train(self, mode: bool = True) -> "_FrozenTower":
        """Stay in evaluation mode, whatever ``mode`` says."""
        del mode
        return super().train(False)


class ImageTower(_FrozenTower):
    """An image tower of any architecture: images in, features out.

    Args:
        visual: ``open_clip``'s module; a ResNet or a timm model as well as a transformer.
        preprocessing: Mean and standard deviation with which images are normalised here, on the device.
        embed_dim: Width of the joint embedding.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, visual: nn.Module, preprocessing: Preprocessing, embed_dim: int) -> None:
        super().__init__()
        self.visual: Any = visual
        self.preprocessing = preprocessing
        self.embed_dim = embed_dim
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).train()

    def pixels(self, images: Tensor) -> Tensor:
        """Normalise images [B, 3, S, S], uint8 in 0..255 or float in [0, 1], in float32."""
        pixels = images.float().div(255) if images.dtype == torch.uint8 else images.float()
        return (pixels - self.mean.float()) / self.std.float()

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] into features [B, embed_dim], not normalised."""
        features: Tensor = self.visual(self.pixels(images).to(next(self.visual.parameters()).dtype))
        return features


class PromptableImageTower(ImageTower):
    """A CLIP vision transformer that pools by its class token."""

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's residual blocks, first to last."""
        blocks: nn.ModuleList = self.visual.transformer.resblocks
        return blocks

    @property
    def width(self) -> int:
        """Width W of the tokens."""
        return int(self.visual.conv1.out_channels)

    def embed(self, images: Tensor) -> Tensor:
        """Normalise images and turn them into tokens with positions, before ``ln_pre``.

        Args:
            images: [B, 3, S, S], uint8 in 0..255 or float in [0, 1].

        Returns:
            Class token and patch tokens, [B, 1 + patches, W].
        """
        visual = self.visual
        patches = visual.conv1(self.pixels(images).to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        tokens: Tensor = torch.cat([class_token, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        return tokens

    def norm(self, tokens: Tensor) -> Tensor:
        """Apply ``ln_pre``, which stands before the first block, to tokens [B, L, W]."""
        normed: Tensor = self.visual.ln_pre(tokens)
        return normed

    def project(self, tokens: Tensor) -> Tensor:
        """Turn the last block's tokens [B, L, W] into image features [B, embed_dim], not normalised."""
        features: Tensor = self.visual.ln_post(tokens[:, 0]) @ self.visual.proj
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] into features [B, embed_dim], not normalised, without prompts."""
        tokens = self.norm(self.embed(images))
        for block in self.blocks:
            tokens = block(tokens)
        return self.project(tokens)


def promptable(tower: ImageTower) -> PromptableImageTower:
    """Give the tower as one that can be prompted.

    Raises:
        ConfigError: It is a ResNet, a timm model or a transformer of another kind.
    """
    if not isinstance(tower, PromptableImageTower):
        raise ConfigError(
            f"an image tower of kind {type(tower.visual).__name__} has no tokens that prompts could stand beside: set "
            "vision_prompts.depth to 0, or use a vision transformer of CLIP's kind"
        )
    return tower


class TextTower(_FrozenTower):
    """A CLIP text transformer with a causal mask that pools at the end-of-text token.

    Args:
        clip: The ``open_clip.CLIP`` that holds the text tower's parts.
    """

    attn_mask: Tensor

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        parts: Any = clip
        self.transformer = parts.transformer
        self.token_embedding = parts.token_embedding
        self.positional_embedding = parts.positional_embedding
        self.ln_final = parts.ln_final
        self.text_projection = parts.text_projection
        self.register_buffer("attn_mask", parts.attn_mask, persistent=False)
        self.requires_grad_(False).train()

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's residual blocks, first to last."""
        blocks: nn.ModuleList = self.transformer.resblocks
        return blocks

    @property
    def width(self) -> int:
        """Width W of the tokens."""
        return int(self.token_embedding.weight.shape[1])

    @property
    def context_length(self) -> int:
        """Length L of a token sequence."""
        return int(self.positional_embedding.shape[0])

    def project(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Pool the last block's tokens at the end of text and project them.

        Args:
            tokens: [C, L, W].
            ids: Token ids [C, L]; the end-of-text id is the highest of the vocabulary.

        Returns:
            Text features [C, embed_dim], not normalised.
        """
        # ln_final works per token: norm the pooled one alone
        pooled = self.ln_final(tokens[torch.arange(len(ids), device=ids.device), ids.argmax(dim=-1)])
        features: Tensor = pooled @ self.text_projection
        return features

    def forward(self, ids: Tensor) -> Tensor:
        """Encode token ids [C, L] into features [C, embed_dim], not normalised, without prompts."""
        tokens = self.token_embedding(ids)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens, attn_mask=self.attn_mask)
        return self.project(tokens, ids)
