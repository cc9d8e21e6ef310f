"""Many images through a network on all cores, by threads that each decode a batch and classify it.

Pillow and torch release Python's lock; torch's own threads within an operation would mostly wait
for each other.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

import torch
from torch import Tensor

from kdpl.errors import DataError

T = TypeVar("T")
R = TypeVar("R")


def classify_ahead(
    items: Iterable[T],
    prepare: Callable[[T], Tensor],
    network: Callable[[Tensor], Sequence[R]],
    batch_size: int,
    workers: int,
) -> Iterator[tuple[T, R | DataError]]:
    """Prepare images and run a network over them.

    Args:
        items: Items to prepare; read lazily, by this thread, at most ``workers`` + 3 batches ahead.
        prepare: Turns an item into an image, uint8 [3, S, S]; called in threads.
        network: Turns images [B, 3, S, S] on the CPU into B results; called in threads, unless all
            items fit into one batch: then torch uses its own threads.
        batch_size: B.
        workers: Number of threads.

    Yields:
        Each item, in order, with its result, or with the ``DataError`` that preparing it raised.
    """

    def attempt(item: T) -> Tensor | DataError:
        try:
            return prepare(item)
        except DataError as error:
            return error

    def classify(
        batch: Sequence[T], map_images: Callable[..., Iterator[Tensor | DataError]] = map
    ) -> list[tuple[T, R | DataError]]:
        images = list(map_images(attempt, batch))
        readable = [image for image in images if isinstance(image, Tensor)]
        results = iter(network(torch.stack(readable)) if readable else ())
        return [
            (item, image if isinstance(image, DataError) else next(results))
            for item, image in zip(batch, images, strict=True)
        ]

    rest = iter(items)
    batches = iter(lambda: list(islice(rest, batch_size)), [])
    begin = list(islice(batches, 2))
    torch_threads = torch.get_num_threads()
    waiting: deque[Future[list[tuple[T, R | DataError]]]] = deque()
    with ThreadPoolExecutor(
        workers, "classify", initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        try:
            if len(begin) == 1:
                yield from classify(begin[0], pool.map)
                return
            for batch in chain(begin, batches):
                waiting.append(pool.submit(classify, batch))
                if len(waiting) > workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            # a caller that stops early does not wait for the other batches
            for future in waiting:
                future.cancel()
            torch.set_num_threads(torch_threads)
