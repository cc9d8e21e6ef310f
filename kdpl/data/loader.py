"""The loader of all splits."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from kdpl.data.sampler import TrainSampler

_END_SECONDS = 5.0


class LazyLoader(DataLoader[Any]):
    """A DataLoader whose workers begin when the first batch is asked for, not when the iteration is set up.

    After a resume, Lightning sets up the iteration before it tells the sampler its epoch; workers that had begun by
    then would load the images of epoch 0. A run that was cut within an epoch goes on with the batch that was next.

    Args:
        dataset: What to load from.
        sampler: Which items, in which order.
        batch_size: Items a batch; the last batch is kept, however short.
        num_workers: Worker processes, which stay from epoch to epoch; 0 loads in this process.
        batches_done: Says, when an iteration begins, how many batches of its epoch there were before a cut.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: Sampler[Any],
        batch_size: int,
        num_workers: int,
        batches_done: Callable[[], int] = lambda: 0,
    ) -> None:
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

        self._batches_done = batches_done

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # a generator: nothing runs before the first next()
        if isinstance(self.sampler, TrainSampler):
            self.sampler.start = self._batches_done() * (self.batch_size or 1)
        try:
            yield from super().__iter__()
        except (ConnectionError, EOFError) as error:
            # a worker was killed while an image was being handed over; in torch's own words for one killed at rest
            raise RuntimeError(f"DataLoader worker (pid(s) {self._gone()}) exited unexpectedly") from error

    def _gone(self) -> str:
        workers = getattr(self._iterator, "_workers", ())
        # A process's connections break a moment before its end is told: then torch's handler of SIGCHLD raises, and it
        # should do so here, not in the middle of whatever handles the error.
        until = time.monotonic() + _END_SECONDS
        while workers and all(worker.is_alive() for worker in workers) and time.monotonic() < until:
            time.sleep(0.01)
        return ", ".join(str(worker.pid) for worker in workers if not worker.is_alive()) or "0"

    def sources_of(self, epoch: int, batch: int) -> list[str]:
        """Names of this process's images in a batch of training, from 0; computed, so that nothing need be kept."""
        sampler = self.sampler
        if not isinstance(sampler, TrainSampler):
            return []
        keys = sampler.keys(epoch, batch * (self.batch_size or 1))
        return [self.dataset.source(i) for i, _ in islice(keys, self.batch_size)]  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, int]:
        """Nothing: the trainer's own progress says where an epoch was cut. Tells Lightning that it can be resumed."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing, as above."""


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
