"""One function over many images, on all cores, under a progress bar."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kdpl.data.decoding import cores
from kdpl.runtime.messages import process_rank, start_lines

_CHUNK = 64  # items that a worker takes at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def progress_bar(shown: bool = True) -> Iterator[Progress]:
    """Show title, counts and time left on a terminal's standard error, elsewhere print them."""
    console, lines = Console(stderr=True), Console(stderr=True, quiet=not shown)
    # a file has no bar, and the time left is known even if a step takes minutes
    bar, left, period = ([BarColumn()], "", 30) if console.is_terminal else ([], "left", 600)
    columns = (TextColumn("{task.description}"), *bar, MofNCompleteColumn(), TimeRemainingColumn())
    # before 14.3, rich ends even a bar that is not shown with an empty line
    hidden = console.quiet = not (shown and bar and process_rank() == 0)
    bar_of = partial(Progress, *columns, left, console=console, transient=True, disable=hidden)
    with bar_of(speed_estimate_period=period) as progress, ExitStack() as at_end:
        at_end.callback(start_lines(lambda: progress, lines).set)
        yield progress


def in_parallel(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    title: str,
    workers: int | None = None,
    at_once: int = _CHUNK,
) -> Iterator[Result]:
    """Call a function on each item, in order, with a progress bar of this title on a terminal.

    The function is one at module level, or a ``partial`` of one. ``workers`` are processes; None:
    one for each core; 1: this process alone. A process takes ``at_once`` items at a time.
    """
    from torch.utils.data import BatchSampler

    from kdpl.data.inference import read_in_workers

    chunks = BatchSampler(range(len(items)), at_once, drop_last=False)
    workers = min(workers or cores(), len(chunks))
    load = partial(_apply, function=function)
    loader = read_in_workers(load, items, chunks, workers if workers > 1 else 0, pin_memory=False)
    with progress_bar() as progress:
        yield from progress.track(chain.from_iterable(loader), len(items), description=title)


def _apply(items: list[Item], function: Callable[[Item], Result]) -> list[Result]:
    return [function(item) for item in items]
