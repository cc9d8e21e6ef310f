"""The loader of all splits."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler


class LazyLoader(DataLoader[Any]):
    """A DataLoader whose workers begin when the first batch is asked for, not when the iteration is set up.

    After a resume, Lightning sets up the iteration before it tells the sampler its epoch; workers that had begun by
    then would load the images of epoch 0.

    Args:
        dataset: What to load from.
        sampler: Which items, in which order.
        batch_size: Items a batch; the last batch is kept, however short.
        num_workers: Worker processes, which stay from epoch to epoch; 0 loads in this process.
    """

    def __init__(self, dataset: Dataset[Any], sampler: Sampler[Any], batch_size: int, num_workers: int) -> None:
        super().__init__(
            dataset,
            batch_size,
            sampler=sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # a stream of its own: a loader would draw its workers' seed from torch's global one at every epoch
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # a generator: nothing runs before the first next()
        yield from super().__iter__()


class Batches:
    """A loader's batches, and nothing that Lightning could change.

    For predictions it would make a DataLoader anew, with a sampler and workers of its own.

    Args:
        loader: The loader.
    """

    def __init__(self, loader: LazyLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)

    def __len__(self) -> int:
        return len(self._loader)
