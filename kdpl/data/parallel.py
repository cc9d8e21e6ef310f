"""One function over many images, on all cores, under a progress bar."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_CHUNK = 64  # items that a worker takes at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """How many processor cores this process may use, where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], title: str, workers: int | None = None
) -> Iterator[Result]:
    """Call a function on each of many items, with a progress bar on standard error where that is a terminal.

    Args:
        function: A function at module level, or a ``partial`` of one.
        items: What it is called on.
        title: What the bar says.
        workers: Processes; None: one for each processor core; 1: this process alone.

    Returns:
        The results, in the order of the items.
    """
    workers = workers or cores()
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(items))
        for results in _in_order(partial(_each, function), chunks, min(workers, len(chunks))):
            progress.advance(task, len(results))
            yield from results


def _in_order(
    function: Callable[[Sequence[Item]], list[Result]], chunks: Sequence[Sequence[Item]], workers: int
) -> Iterator[list[Result]]:
    if workers <= 1:
        yield from map(function, chunks)
        return
    # processes, since Pillow decodes under Python's lock
    context = multiprocessing.get_context(
        "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    )
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = iter(chunks)
        try:
            # workers that are just starting, and would not find what is cleared away, answer by a traceback
            pending = [pool.submit(function, chunk) for chunk in islice(waiting, 4 * workers)]
            while pending:
                results = pending.pop(0).result()
                # a few at a time, so that a million images need no million waiting tasks
                pending += [pool.submit(function, chunk) for chunk in islice(waiting, 1)]
                yield results
        finally:
            pool.shutdown(cancel_futures=True)


def _each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    return [function(item) for item in items]
