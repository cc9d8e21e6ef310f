"""Many images through a network on all cores, by threads that each decode a batch and classify it.

Pillow and torch release Python's lock; torch's own threads within an operation would mostly wait
for each other.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from kdpl.errors import DataError

T = TypeVar("T")


class Batch(NamedTuple):
    """Output for B images: probabilities and labels [B, k], features [B, D], scores [B] by name."""

    probabilities: Tensor
    labels: Tensor
    features: Tensor
    scores: Mapping[str, Tensor]


Network = Callable[[Tensor], Batch]
"""Images [B, 3, S, S] on the CPU to what is on any device."""


class TopK(NamedTuple):
    """Output for an image: the k most probable classes in order, features [D], scores by name."""

    labels: list[int]
    probabilities: list[float]
    features: Tensor
    scores: Mapping[str, float]


def classify_ahead(
    items: Iterable[T],
    prepare: Callable[[T], Tensor],
    network: Network,
    batch_size: int,
    workers: int,
) -> Iterator[tuple[T, TopK | DataError]]:
    """Prepare images and run a network over them.

    Args:
        items: Items to prepare; read lazily, by this thread, at most ``workers`` + 3 batches ahead.
        prepare: Turns an item into an image, uint8 [3, S, S]; called in threads.
        network: Called in threads, unless all items fit into one batch: then torch uses its own
            threads.
        batch_size: Images per batch.
        workers: Number of threads.

    Yields:
        Each item, in order, with its classes, or with the ``DataError`` that preparing it raised.
    """

    def attempt(item: T) -> Tensor | DataError:
        try:
            return prepare(item)
        except DataError as error:
            return error

    def work(batch: list[T]) -> list[TopK | DataError]:
        return _classify([attempt(item) for item in batch], network)

    rest = iter(items)
    batches = iter(lambda: list(islice(rest, batch_size)), [])
    begin = list(islice(batches, 2))
    torch_threads = torch.get_num_threads()
    waiting: deque[tuple[list[T], Future[list[TopK | DataError]]]] = deque()

    def finished() -> Iterator[tuple[T, TopK | DataError]]:
        batch, future = waiting.popleft()
        return zip(batch, future.result(), strict=True)

    with ThreadPoolExecutor(
        workers, "classify", initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        try:
            if len(begin) == 1:
                yield from zip(
                    begin[0], _classify(list(pool.map(attempt, begin[0])), network), strict=True
                )
                return
            for batch in chain(begin, batches):
                waiting.append((batch, pool.submit(work, batch)))
                if len(waiting) > workers:
                    yield from finished()
            while waiting:
                yield from finished()
        finally:
            # a caller that stops early does not wait for the other batches
            for _, future in waiting:
                future.cancel()
            torch.set_num_threads(torch_threads)


def _classify(images: list[Tensor | DataError], network: Network) -> list[TopK | DataError]:
    readable = [image for image in images if isinstance(image, Tensor)]
    rows: Iterator[TopK] = iter(())
    if readable:
        output = network(torch.stack(readable))
        scores = {name: score.tolist() for name, score in output.scores.items()}
        each = [{name: values[i] for name, values in scores.items()} for i in range(len(readable))]
        rows = map(
            TopK, output.labels.tolist(), output.probabilities.tolist(), output.features.cpu(), each
        )
    return [image if isinstance(image, DataError) else next(rows) for image in images]
