"""Memory format of the weights and activations of convolutional networks."""

import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import nn

_FASTER = (
    timm.models.EfficientNet,
    timm.models.MobileNetV3,
    timm.models.RegNet,
    timm.models.ResNet,
    ModifiedResNet,
)
"""Networks measured to be faster with channels last: docs/performance.md."""

_LEAST_CHANNELS = 16


def memory_format_of(visual: nn.Module) -> torch.memory_format:
    """Choose the faster format for a network; results differ only by rounding."""
    network = getattr(visual, "trunk", visual)
    if isinstance(network, _FASTER) and not any(map(_breaks, network.modules())):
        return torch.channels_last
    return torch.contiguous_format


def _breaks(module: nn.Module) -> bool:
    """Return whether the backward pass of a convolution corrupts memory with channels last.

    The stem of RepVGG has such a convolution.

    oneDNN writes past its buffer if a strided 1×1 convolution has fewer input channels than a
    vector register holds: https://github.com/uxlfoundation/oneDNN/issues/6035
    """
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels // module.groups < _LEAST_CHANNELS
    )
