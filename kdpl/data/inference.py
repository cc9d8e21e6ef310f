"""A network over the batches of a loader, without gradients."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from kdpl.data.batches import BatchT

OutputT = TypeVar("OutputT")


@torch.no_grad()
def infer(
    network: Callable[[Tensor], OutputT], batches: Iterable[BatchT], device: torch.device
) -> Iterator[tuple[OutputT, BatchT]]:
    """Yield the network's output for each batch of images, on its device, and the batch."""
    for batch in batches:
        yield network(batch.images.to(device)), batch
