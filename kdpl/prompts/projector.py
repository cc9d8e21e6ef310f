"""The projector from a student's embedding into the teacher's (PromptKD, arXiv 2403.02781)."""

from typing import Any

import torch
from torch import Tensor, distributed, nn

from kdpl.clip.modules import Float32Module
from kdpl.errors import ConfigError


def _local_rows(rows: Tensor) -> Tensor:
    return rows.reshape(distributed.get_world_size(), -1, rows.shape[1])[distributed.get_rank()]


class _AllRows(torch.autograd.Function):
    """Gathers the rows of all processes, [B, D] to [W·B, D]; each gets its rows' gradients."""

    @staticmethod
    def forward(_: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        # the sum: each process's loss is the mean over its images, and DistributedDataParallel
        # averages the gradients afterwards
        distributed.all_reduce(gradient)
        return _local_rows(gradient)


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch norm over the images of all processes, equal to one process with the whole batch.

    All processes have equally many images. Unlike ``nn.SyncBatchNorm`` it also works on the CPU.
    Each process normalises all rows; they are few.
    """

    def forward(self, rows: Tensor) -> Tensor:
        """Normalise this process's rows [B, D]."""
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return super().forward(rows)
        whole: Tensor = super().forward(_AllRows.apply(rows))  # type: ignore[no-untyped-call]  # torch has no types for it
        return _local_rows(whole)


class Projector(Float32Module):
    """Maps student to teacher embedding: Linear, BatchNorm, ReLU, Linear (PromptKD, section 3.3).

    The published code writes the same function as 1×1 convolutions. Always computes in float32. The
    embeddings have the widths ``in_dim`` d and ``out_dim`` D. Other ``depth`` than the published 2
    linear layers are an ablation; 0 leaves features of the same width as they are.
    """

    def __init__(self, in_dim: int, out_dim: int, depth: int = 2) -> None:
        super().__init__()
        self.depth = depth
        if depth == 0 and in_dim != out_dim:
            raise ConfigError(
                f"the student's features have {in_dim} numbers and the class vectors {out_dim}, "
                "which needs a projector: set projector_layers above 0"
            )
        layers: list[nn.Module] = []
        for width in (in_dim, *[out_dim] * (depth - 1))[:depth]:
            if layers:
                layers += [GlobalBatchNorm(out_dim, dtype=torch.float32), nn.ReLU(inplace=True)]
            layers.append(nn.Linear(width, out_dim, dtype=torch.float32))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Project features [B, d] to [B, D], not normalised."""
        with torch.autocast(features.device.type, enabled=False):
            projected: Tensor = self.layers(features.float())
        return projected
