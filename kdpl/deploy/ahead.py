"""Many images through a network on all cores: threads that each decode a batch and classify it.

Threads and not processes: Pillow and torch compute without holding Python's lock, so that threads fill the cores as
well, start at once, and share the network. One thread for each batch and not torch's own threads for each operation:
these wait for one another, and with others that decode beside them they wait most of the time.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from kdpl.errors import DataError

T = TypeVar("T")
Network = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images [B, 3, S, S] on the CPU to probabilities and labels [B, k] on any device."""


class Guesses(NamedTuple):
    """The network's first guesses for one image, most probable first.

    Attributes:
        labels: Their classes.
        probabilities: Their probabilities.
    """

    labels: list[int]
    probabilities: list[float]


def guess(
    items: Iterable[T], prepare: Callable[[T], Tensor], network: Network, batch_size: int, workers: int
) -> Iterator[tuple[T, Guesses | DataError]]:
    """Prepare images and run a network over them.

    Args:
        items: What to prepare; read lazily, by this thread alone, no further than ``workers`` + 3 batches ahead.
        prepare: Turns an item into an image, uint8 [3, S, S]; called in threads.
        network: The network; called in threads, unless all items are one batch: torch's own threads serve that.
        batch_size: Images at once.
        workers: How many threads prepare and compute. Meanwhile torch computes in one thread for each of them.

    Yields:
        Each item, in order, with its guesses, or with the ``DataError`` that preparing it raised.
    """

    def attempt(item: T) -> Tensor | DataError:
        try:
            return prepare(item)
        except DataError as error:
            return error

    def work(group: list[T]) -> list[Guesses | DataError]:
        return _classify([attempt(item) for item in group], network)

    rest = iter(items)
    first, second = (list(islice(rest, batch_size)) for _ in range(2))
    torch_threads = torch.get_num_threads()
    waiting: deque[tuple[list[T], Future[list[Guesses | DataError]]]] = deque()
    with ThreadPoolExecutor(workers, "classify", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            if not second:
                yield from zip(first, _classify(list(pool.map(attempt, first)), network), strict=True)
                return
            group = first
            while group:
                waiting.append((group, pool.submit(work, group)))
                group, second = second, list(islice(rest, batch_size))
                if len(waiting) > workers:
                    done, future = waiting.popleft()
                    yield from zip(done, future.result(), strict=True)
            for done, future in waiting:
                yield from zip(done, future.result(), strict=True)
        finally:
            # whoever stops early does not wait for what nobody will look at
            for _, future in waiting:
                future.cancel()
            torch.set_num_threads(torch_threads)


def _classify(images: list[Tensor | DataError], network: Network) -> list[Guesses | DataError]:
    whole = [image for image in images if isinstance(image, Tensor)]
    probabilities, labels = (each.tolist() for each in network(torch.stack(whole))) if whole else ([], [])
    rows = map(Guesses, labels, probabilities)
    return [image if isinstance(image, DataError) else next(rows) for image in images]
