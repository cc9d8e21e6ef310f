"""Modules of teacher and student: float32 parameters, frozen and trained towers, cosine head."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdpl.errors import ConfigError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Float32Module(nn.Module):
    """Module that moves between devices but stays float32, even under Lightning's ``bf16-true``.

    With plain SGD on half-precision prompts, some seeds collapse.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_float32(tensor: Tensor) -> Tensor:
            if tensor.dtype != torch.float32:
                return fn(tensor)
            # an empty tensor tells the target device without rounding any values
            return tensor.to(fn(tensor.new_empty(0)).device)

        super()._apply(keep_float32, recurse)  # type: ignore[no-untyped-call]  # torch has no types for it
        return self


class Frozen(nn.Module, Generic[ModuleT]):
    """Frozen module in evaluation mode that is not part of its owner's state.

    The module moves with its owner, but checkpoints, optimisers and DistributedDataParallel do not
    see its weights.

    Args:
        module: The module.
        keep: Keep float32 weights in main memory where ``store_in`` rounds them.
    """

    module: ModuleT

    def __init__(self, module: ModuleT, keep: bool = False) -> None:
        super().__init__()
        # not through nn.Module's __setattr__, which would register it as a child
        object.__setattr__(self, "module", module.eval().requires_grad_(False))
        self._keep = keep
        self._float32: dict[nn.Parameter, Tensor | None] = {}

    @torch.inference_mode(False)
    def store_in(self, dtype: torch.dtype) -> None:
        """Store the weights that autocast would cast at every use in its type, or in float32 again.

        A ConfigError if the float32 weights are needed and were not kept.
        """
        towers = [module for module in self.module.modules() if isinstance(module, FrozenTower)]
        for weight in (weight for tower in towers for weight in tower.cast_weights()):
            source: Tensor | None = weight.data
            if weight.dtype == torch.float32 != dtype:
                self._float32[weight] = weight.data.cpu() if self._keep else None
            elif weight.dtype == dtype or weight not in self._float32:
                # under bf16-true it is not float32
                continue
            else:
                source = self._float32[weight]
            if source is None:
                raise ConfigError(
                    f"the frozen weights were rounded to {weight.dtype} for an earlier trainer, "
                    "and this one has another precision: build the module again"
                )
            weight.data = source.to(weight.device, dtype)

    @contextmanager
    def exact(self) -> Iterator[ModuleT]:
        """Yield the module with its float32 weights, within the context."""
        # put back the rounded tensors afterwards, instead of rounding again
        stored = {weight: weight.data for weight in self._float32}
        self.store_in(torch.float32)
        try:
            yield self.module
        finally:
            for weight, data in stored.items():
                weight.data = data

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Frozen[ModuleT]":
        for apply in (self.module._apply, super()._apply):
            apply(fn, recurse)  # type: ignore[no-untyped-call]  # as above
        return self


class Trained(Float32Module, Generic[ModuleT]):
    """Tower that is trained as a whole, in float32 and as part of the owner's state.

    Batch norms and dropout stay in evaluation mode, since ``train()`` of a tower does nothing,
    except in a tower with ``train = nn.Module.train``, such as a whole network of timm.
    """

    module: ModuleT

    def __init__(self, module: ModuleT) -> None:
        super().__init__()
        self.module = module.requires_grad_(True)

    def exact(self) -> AbstractContextManager[ModuleT]:
        """Return a context of the module, as in ``Frozen``; its weights are exact already."""
        return nullcontext(self.module)


def store_frozen(owner: nn.Module, dtype: torch.dtype) -> None:
    """Store the weights of all frozen towers in a module, as ``Frozen.store_in`` does."""
    for module in owner.modules():
        if isinstance(module, Frozen):
            module.store_in(dtype)


class FrozenTower(nn.Module):
    """Tower that stays in evaluation mode, also after ``train()``."""

    def cast_weights(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that autocast casts: of layers, attention and projections.

        The bias of ``nn.MultiheadAttention`` is left out: entirely in half precision, it would take
        a fast path on the CPU that rounds differently.
        """
        # not subclasses of torch's layers, as they may compute with their weights first
        layers, package = (nn.Linear, nn.Conv2d, nn.MultiheadAttention), "torch.nn."
        for module in self.modules():
            is_layer = isinstance(module, layers) and type(module).__module__.startswith(package)
            for name, parameter in module.named_parameters(recurse=False):
                # attention of open_clip 4 is not torch's, but its weights have the same names
                is_projection = name.endswith(("proj_weight", "text_projection")) or name == "proj"
                if (is_layer and name != "in_proj_bias") or is_projection:
                    yield parameter

    def train(self, mode: bool = True) -> "FrozenTower":
        """Stay in evaluation mode for any ``mode``."""
        return super().train(False)


class CosineHead(Float32Module):
    """Frozen class vectors, normalised float32 [C, D]; logits are scaled cosine similarities.

    If classes are decided independently, logits have a scale and a bias per class, [C] each.
    """

    class_vectors: Tensor
    scales: Tensor | None
    biases: Tensor | None

    def __init__(
        self, class_vectors: Tensor, scales: Tensor | None = None, biases: Tensor | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("class_vectors", class_vectors.clone())
        self.register_buffer("scales", scales)
        self.register_buffer("biases", biases)

    def forward(self, features: Tensor, logit_scale: float) -> Tensor:
        """Compute logits [B, C] of normalised features, float32 [B, D]."""
        logits = cosine_logits(features, self.class_vectors, logit_scale)
        if self.scales is None or self.biases is None:
            return logits
        return self.scales * logits + self.biases


def cosine_logits(features: Tensor, class_vectors: Tensor, logit_scale: float) -> Tensor:
    """Compute scaled cosine similarities [B, C] in float32, under autocast too.

    ``features`` [B, D] and ``class_vectors`` [C, D] are normalised. At a scale of 100, half
    precision would move logits by tenths.
    """
    with torch.autocast(features.device.type, enabled=False):
        return logit_scale * features @ class_vectors.T


def normalized(features: Tensor) -> Tensor:
    """L2-normalise features [N, D] in float32."""
    return F.normalize(features.float(), dim=-1)


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Digest names, shapes and values of tensors to 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def require_tensors(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError for the first difference of tensors from a module's expected ones."""
    strange = {
        "missing": expected.keys() - tensors.keys(),
        "unknown": tensors.keys() - expected.keys(),
    }
    if problems := [f"tensor '{min(n)[:80]}' is {how}" for how, n in strange.items() if n]:
        raise ValueError(", ".join(problems))
    for name in sorted(expected):
        if expected[name].shape != tensors[name].shape:
            raise ValueError(
                f"tensor '{name}' has shape {tuple(tensors[name].shape)} "
                f"instead of {tuple(expected[name].shape)}"
            )
