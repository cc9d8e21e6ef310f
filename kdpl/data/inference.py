"""One pass over images outside of a fit: worker processes read them, and a network encodes them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdpl.data.batches import BatchT, EvaluationBatch

ItemT = TypeVar("ItemT")
OutputT = TypeVar("OutputT")


def read_in_workers(
    load: Callable[[list[ItemT]], OutputT],
    items: Sequence[ItemT],
    batches: Iterable[list[int]],
    num_workers: int,
    pin_memory: bool = True,
) -> DataLoader[OutputT]:
    """Return a loader of what ``load`` makes, in workers, of items in each batch of positions."""
    # of torch, whose processes end with the one that started them
    return DataLoader(
        cast("Dataset[OutputT]", items),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=load,
        pin_memory=pin_memory and torch.cuda.is_available(),
        # a loader would draw its workers' seed from torch's global generator
        generator=torch.Generator(),
    )


@torch.no_grad()
def infer(
    network: Callable[[Tensor], OutputT], batches: Iterable[BatchT], device: torch.device
) -> Iterator[tuple[OutputT, BatchT]]:
    """Yield the network's output for each batch of images, on its device, and the batch."""
    for batch in batches:
        yield network(batch.images.to(device)), batch


def infer_labeled(
    network: Callable[[Tensor], Tensor], batches: Iterable[EvaluationBatch], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the network's outputs for all images, [N, …], and their labels on the CPU."""
    outputs = [(output, batch.labels) for output, batch in infer(network, batches, device)]
    rows, labels = (torch.cat(column) for column in zip(*outputs, strict=True))
    return rows, labels
