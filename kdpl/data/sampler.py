"""The order of images, and their distribution over processes.

The samplers are distributed ones, so that Lightning does not shard them once more.
"""

from collections.abc import Iterator

from torch.utils.data import DistributedSampler

from kdpl.data.randomness import generator


class TrainSampler(DistributedSampler[tuple[int, int]]):
    """Shuffled training images for one process, as (index, epoch) pairs.

    The order of an epoch depends on the seed and the epoch alone. Global batch b is the b-th run of
    ``batch_size * world_size`` images of that order, whatever the number of processes, and each process takes every
    ``world_size``-th of them. The last, short batch is dropped if there is a full one; otherwise it is all there is,
    and it is kept, filled up from the start of the order so that every process gets as many images.

    The epoch travels with the index, so that worker processes, persistent ones too, know it.

    Attributes:
        start: Images of this process that the next iteration leaves out, after an interrupted epoch.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.num_images = num_images
        self.seed = seed
        self.rank = rank
        self.num_replicas = world_size
        self.epoch = 0
        self.start = 0
        global_batch = batch_size * world_size
        full = num_images // global_batch * global_batch
        # one short batch: rounded up to a multiple of the number of processes
        self.num_used = full or -(-num_images // world_size) * world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; the trainer calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return self.keys(self.epoch, self.start)

    def keys(self, epoch: int, start: int) -> Iterator[tuple[int, int]]:
        """This process's (index, epoch) pairs of an epoch, without the first ``start``."""
        order = generator(self.seed, "order", epoch=epoch).permutation(self.num_images).tolist()
        for position in range(self.rank + start * self.num_replicas, self.num_used, self.num_replicas):
            yield order[position % self.num_images], epoch

    def __len__(self) -> int:
        return self.num_used // self.num_replicas


class EvaluationSampler(DistributedSampler[int]):
    """Every image once, in order: process r of W takes images r, r + W, r + 2W, …, without padding."""

    def __init__(self, num_images: int, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.num_replicas = rank, world_size
        self._indices = range(rank, num_images, world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)
