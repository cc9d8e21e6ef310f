"""The loader of all splits."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from kdpl.data.sampler import TrainSampler


class LazyLoader(DataLoader[Any]):
    """A DataLoader whose workers begin when the first batch is asked for, not when the iteration is set up.

    On resume, Lightning sets up the iteration before it tells the sampler its epoch; workers that had begun by then
    would load the images of epoch 0. A run that was interrupted within an epoch resumes with the batch that was next.

    Worker processes stay from epoch to epoch, and the last batch is kept, however short. ``batches_done`` is called
    when an iteration begins: the batches of its epoch that were trained on already.
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
            # its own stream: a loader would draw its workers' seed from torch's global one at every epoch
            generator=torch.Generator(),
        )
        self._batches_done = batches_done

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # a generator: nothing runs before the first next()
        if isinstance(self.sampler, TrainSampler):
            self.sampler.start = self._batches_done() * (self.batch_size or 1)
        yield from super().__iter__()

    def sources_of(self, epoch: int, batch: int) -> list[str]:
        """Names of this process's images in a training batch, counted from 0."""
        sampler = self.sampler
        if not isinstance(sampler, TrainSampler):
            return []
        keys, sources = sampler.keys(epoch, batch * (self.batch_size or 1)), self.dataset.sources  # type: ignore[attr-defined]
        return [sources[i] for i, _ in islice(keys, self.batch_size)]

    def state_dict(self) -> dict[str, int]:
        """Empty, since the trainer's progress says where an epoch was interrupted; tells Lightning that it resumes."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to load, see ``state_dict``."""
