"""Modules that teacher and student are built with: float32 parameters, carried and trained towers, the cosine head."""

from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Float32Module(nn.Module):
    """A module that moves between devices but refuses to leave float32, as under Lightning's ``bf16-true``.

    Plain SGD on half-precision prompts collapses seeds.
    """

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        def keep_float32(tensor: Tensor) -> Tensor:
            if tensor.dtype != torch.float32:
                return fn(tensor)  # type: ignore[no-any-return]
            # an empty tensor tells where fn would put it, without rounding the values on the way
            return tensor.to(fn(tensor.new_empty(0)).device)

        super()._apply(keep_float32, recurse)  # type: ignore[no-untyped-call]
        return self


class Frozen(nn.Module, Generic[ModuleT]):
    """Carries a module along, frozen and in evaluation mode, without making it part of the owner's state.

    The module moves with its owner, but checkpoints, optimisers and DistributedDataParallel do not see its weights.
    """

    module: ModuleT

    def __init__(self, module: ModuleT) -> None:
        super().__init__()
        # not through nn.Module's __setattr__, which would register it as a child
        object.__setattr__(self, "module", module.eval().requires_grad_(False))

    def _apply(self, fn: Any, recurse: bool = True) -> "Frozen[ModuleT]":
        self.module._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class Trained(Float32Module, Generic[ModuleT]):
    """Owns a tower that is trained as a whole, in float32 and as part of the owner's state.

    Statistics of batch norms and dropout stay as in evaluation: a tower's ``train()`` does not flip it.
    """

    module: ModuleT

    def __init__(self, module: ModuleT) -> None:
        super().__init__()
        self.module = module.requires_grad_(True)


class FrozenTower(nn.Module):
    """A tower that no ``train()`` flips: evaluation is its only mode."""

    def train(self, mode: bool = True) -> "FrozenTower":
        """Stay in evaluation mode, whatever ``mode`` says."""
        del mode
        return super().train(False)


class CosineHead(Float32Module):
    """Frozen class vectors, normalised float32 [C, D], as a buffer; logits are scaled cosine similarities."""

    class_vectors: Tensor

    def __init__(self, class_vectors: Tensor) -> None:
        super().__init__()
        self.register_buffer("class_vectors", class_vectors.clone())

    def forward(self, features: Tensor, logit_scale: float) -> Tensor:
        """Logits [B, C] of normalised features, float32 [B, D]."""
        return cosine_logits(features, self.class_vectors, logit_scale)


def cosine_logits(features: Tensor, class_vectors: Tensor, logit_scale: float) -> Tensor:
    """Scaled cosine similarities [B, C] of normalised features [B, D] and class vectors [C, D], in float32.

    Under autocast too: at a scale of 100 half precision would move logits by tenths.
    """
    with torch.autocast(features.device.type, enabled=False):
        return logit_scale * features @ class_vectors.T
