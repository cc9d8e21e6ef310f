"""Order of images, their distribution over processes, and the loader of all splits.

The samplers subclass ``DistributedSampler``, so Lightning does not shard them again.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler

from kdpl.data.batches import BatchT, collate
from kdpl.data.names import Indices
from kdpl.data.sampling import balanced, generator

# added to the epoch when an image is drawn again within it, so that it gets another view
_AGAIN = 2**32


@dataclass(eq=False)
class TrainSampler(DistributedSampler[tuple[int, int]]):
    """Shuffled training images for one process, as (position, epoch) pairs.

    Positions refer to the list of training images, possibly a part of the pool.

    The order of an epoch depends only on the seed and the epoch. Global batch b is the b-th run of
    ``batch_size * world_size`` images in that order, for any number of processes, and each process
    takes every ``world_size``-th image. A short last batch is dropped, unless it is the only batch:
    then it is filled up from the start of the order, so that all processes get equally many images.

    The order is a uniform permutation. With ``labels``, it is drawn by
    ``kdpl.data.sampling.balanced``: as many images, some several times and some not at all.

    The epoch, set by Lightning, travels with the index, so that worker processes know it,
    persistent workers too. An image that ``balanced`` draws again within an epoch gets another
    epoch number, and so another view.

    An iteration skips the batches that ``batches_done`` counts when it begins, as trained on before
    an interruption. ``len()`` stays the same: the trainer adds the batches already done.
    """

    num_images: int
    batch_size: int
    seed: int
    rank: int = 0
    num_replicas: int = 1
    labels: Indices | None = None
    batches_done: Callable[[], int] = lambda: 0
    epoch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        global_batch = self.batch_size * self.num_replicas
        full = self.num_images // global_batch * global_batch
        # round a single short batch up to a multiple of the number of processes
        self.num_used = full or -(-self.num_images // self.num_replicas) * self.num_replicas

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # this process's share, without what an interrupted epoch has done
        first = self.rank + self.batches_done() * self.batch_size * self.num_replicas
        rng = generator(self.seed, "order", epoch=self.epoch)
        if self.labels is None:
            order = rng.permutation(self.num_images)
        else:
            order = balanced(self.labels, min(self.num_used, self.num_images), rng)
        share = np.resize(order, self.num_used)[first :: self.num_replicas]
        # one number at a time becomes one of Python: there may be millions
        repeats = (divmod(int(drawn), self.num_images) for drawn in share)
        return ((image, self.epoch + again * _AGAIN) for again, image in repeats)

    def __len__(self) -> int:
        return self.num_used // self.num_replicas


@dataclass(eq=False)
class EvaluationSampler(DistributedSampler[int]):
    """Sampler of each image once, in order: process r of W takes r, r + W, r + 2W, …, unpadded."""

    num_images: int
    rank: int = 0
    num_replicas: int = 1

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.num_images, self.num_replicas))

    def __len__(self) -> int:
        return len(range(self.rank, self.num_images, self.num_replicas))


class RepeatedSampler(SequentialSampler):
    """The order of a sampler's first epoch in each epoch, for ``trainer.overfit_batches``.

    Sequential, because Lightning replaces any other sampler.
    """

    def __init__(self, sampler: Iterable[Any]) -> None:
        self._keys = list(sampler)
        super().__init__(self._keys)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._keys)


class LazyLoader(DataLoader[BatchT]):
    """DataLoader whose workers start with the first batch, not when the iteration is set up.

    On resume, Lightning sets up the iteration before it tells the sampler its epoch; workers that
    had started would load the images of epoch 0.

    Worker processes persist between epochs, and a short last batch is kept.
    """

    def __init__(
        self,
        dataset: Dataset[BatchT],
        sampler: Iterable[Any],
        batch_size: int,
        num_workers: int,
    ) -> None:
        super().__init__(
            dataset,
            batch_size,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=collate,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # without it, each epoch would draw the workers' seed from torch's global stream
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[BatchT]:  # type: ignore[override]  # torch declares its private iterator class
        # a generator function: nothing runs before the first next()
        yield from super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """Return an empty state: the sampler finds the batch; without it Lightning warns."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Do nothing, see ``state_dict``."""
