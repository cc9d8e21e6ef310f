"""One function over many images, on all cores, under a progress bar."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_CHUNK = 64  # items that a worker takes at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress_bar(shown: bool = True) -> Progress:
    """A bar with a title, counts and the remaining time, on a terminal's standard error."""
    console = Console(stderr=True)
    # before 14.3, rich ends even a bar that is not shown with an empty line
    console.quiet = not (shown and console.is_terminal)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=console.quiet,
    )


def in_parallel(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    title: str,
    workers: int | None = None,
) -> Iterator[Result]:
    """Call a function on each item, in order, with a progress bar of this title on a terminal.

    The function is one at module level, or a ``partial`` of one. ``workers`` are processes; None:
    one for each core; 1: this process alone.
    """
    from torch.utils.data import BatchSampler

    from kdpl.data.inference import read_in_workers

    chunks = BatchSampler(range(len(items)), _CHUNK, drop_last=False)
    workers = min(workers or cores(), len(chunks))
    load = partial(_apply, function=function)
    loader = read_in_workers(load, items, chunks, workers if workers > 1 else 0, pin_memory=False)
    with progress_bar() as progress:
        yield from progress.track(chain.from_iterable(loader), len(items), description=title)


def _apply(items: list[Item], function: Callable[[Item], Result]) -> list[Result]:
    return [function(item) for item in items]
