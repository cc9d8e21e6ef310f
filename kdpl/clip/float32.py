"""Trained parameters stay in float32 under every precision setting."""

from typing import Any, Self

import torch
from torch import Tensor, nn


class Float32Module(nn.Module):
    """A module that moves between devices but refuses to leave float32.

    ``module.to(torch.bfloat16)``, which is what Lightning's ``bf16-true`` does to a whole LightningModule,
    leaves these parameters and buffers as they are: plain SGD on half-precision prompts collapses seeds.
    """

    def _apply(self, fn: Any, recurse: bool = True) -> Self:  # noqa: ANN401
        def keep_float32(tensor: Tensor) -> Tensor:
            if tensor.dtype != torch.float32:
                return fn(tensor)  # type: ignore[no-any-return]
            # an empty tensor tells where fn would put it, without rounding the values on the way
            return tensor.to(fn(tensor.new_empty(0)).device)

        super()._apply(keep_float32, recurse)  # type: ignore[no-untyped-call]
        return self
