"""Image towers of any architecture, and image towers that take prompts."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from kdpl.clip.identity import Preprocessing
from kdpl.clip.modules import Float32Module, FrozenTower
from kdpl.errors import ConfigError

IMAGE_SETTINGS = ("embed_dim", "vision_cfg", "quick_gelu", "projection")
"""Keys of the image part of a model config: open_clip's and ``projection``, False for none."""

_FASTER = (
    timm.models.EfficientNet,
    timm.models.MobileNetV3,
    timm.models.RegNet,
    timm.models.ResNet,
    ModifiedResNet,
)
"""Networks measured to be faster with channels last: docs/performance.md."""

_LEAST_CHANNELS = 16


class Pixels(Float32Module):
    """Normalisation of images [B, 3, S, S], uint8 or float in [0, 1], in float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised images, float32."""
        pixels = images.float().div(255) if images.dtype == torch.uint8 else images.float()
        return (pixels - self.mean) / self.std


class ImageTower(FrozenTower):
    """Image tower of any architecture, with the image part of its model config."""

    def __init__(
        self, visual: nn.Module, preprocessing: Preprocessing, config: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.visual: Any = visual
        self.preprocessing = preprocessing
        self.config = {key: config[key] for key in IMAGE_SETTINGS if key in config}
        self.pixels = Pixels(preprocessing)
        self.memory_format = torch.contiguous_format
        self.use_memory_format(memory_format_of(visual))
        self.requires_grad_(False).train()
        if config.get("projection") is False:
            self.drop_projection()

    @property
    def embed_dim(self) -> int:
        """Width D of the features."""
        return int(self.config["embed_dim"])

    def use_memory_format(self, memory_format: torch.memory_format) -> None:
        """Store the weights of convolutions in a memory format, and compute in it."""
        if memory_format != self.memory_format:
            self.memory_format = memory_format
            self.visual.to(memory_format=memory_format)

    def compile_parts(self) -> None:
        """Compile the tower in place; names of weights stay the same."""
        self.visual.compile()

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S], uint8 or float in [0, 1]: [B, embed_dim], not normalised."""
        return cast(Tensor, self.visual(self._input(images)))

    def pooled(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] into features [B, W] before the joint space, not normalised.

        W is the width of the tower. If open_clip's module has no separate projection, they are the
        features of the joint space.
        """
        return cast(Tensor, self.visual.trunk(self._input(images)) if self._head else self(images))

    def project(self, pooled: Tensor) -> Tensor:
        """Map the features of ``pooled`` to the features of ``forward``, [B, embed_dim]."""
        return cast(Tensor, self._head(pooled)) if self._head else pooled

    def drop_projection(self) -> None:
        """Remove the projection into the joint space in place, if it is a separate module.

        ``forward`` then returns features as ``pooled`` does, and ``embed_dim`` is their width W.
        """
        if isinstance(proj := getattr(self.visual, "proj", None), nn.Parameter):
            self.visual.proj = None
            self._say_dropped(proj.shape[0])
        elif self._head:
            layers = [layer for layer in self._head.modules() if isinstance(layer, nn.Linear)]
            self.visual.head = nn.Sequential()
            self._say_dropped(layers[0].in_features if layers else self.embed_dim)

    def _say_dropped(self, width: int) -> None:
        # so that ``build_image_tower`` builds it without a projection
        self.config |= {"embed_dim": width, "projection": False}

    @property
    def _head(self) -> Any:
        """Projection of open_clip's module for a timm network; None for others, and if it pools."""
        head = getattr(self.visual, "head", None) if hasattr(self.visual, "trunk") else None
        return None if hasattr(head, "pool") else head

    def _input(self, images: Tensor) -> Tensor:
        pixels = self.pixels(images).to(next(self.visual.parameters()).dtype)
        if self.memory_format == torch.channels_last:
            pixels = pixels.contiguous(memory_format=self.memory_format)
        return cast(Tensor, pixels)


class PromptableImageTower(ImageTower, ABC):
    """Vision transformer whose blocks take tokens [B, L, W] and additional prompts."""

    @property
    def blocks(self) -> list[Any]:
        """The transformer's residual blocks, first to last."""
        trunk = getattr(self.visual, "trunk", None)
        return list(self.visual.transformer.resblocks if trunk is None else trunk.blocks)

    @property
    def width(self) -> int:
        """Width W of the tokens."""
        trunk = getattr(self.visual, "trunk", None)
        return int(self.visual.transformer.width if trunk is None else trunk.embed_dim)

    @abstractmethod
    def with_prompts(self, images: Tensor, prompts: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] with prompts [J, n, W] in the first J blocks: [B, embed_dim].

        The prompts of layer 0 are appended to the image's tokens; each later layer replaces them
        with its prompts.
        """

    @abstractmethod
    def patch_sums(self, images: Tensor, depth: int) -> Tensor:
        """Sum mean patch tokens of images [B, 3, S, S] where each layer's prompts enter: [J, W]."""


def promptable(tower: ImageTower) -> PromptableImageTower:
    """Narrow a tower to one that takes prompts; a ConfigError for a convolutional network."""
    if not isinstance(tower, PromptableImageTower):
        raise ConfigError(
            f"an image tower of kind {type(tower.visual).__name__} has no tokens that prompts "
            "could stand beside: set vision_prompts.depth to 0, or use a vision transformer"
        )
    return tower


def memory_format_of(visual: nn.Module) -> torch.memory_format:
    """Choose the faster format for a network; results differ only by rounding."""
    network = getattr(visual, "trunk", visual)
    if isinstance(network, _FASTER) and not any(map(_breaks, network.modules())):
        return torch.channels_last
    return torch.contiguous_format


def _breaks(module: nn.Module) -> bool:
    """Return whether the backward pass of a convolution corrupts memory, as of RepVGG's stem.

    oneDNN writes past its buffer if a strided 1×1 convolution with channels last has fewer input
    channels than a vector register holds: https://github.com/uxlfoundation/oneDNN/issues/6035
    """
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels // module.groups < _LEAST_CHANNELS
    )
