"""Messages of a training run, printed once for all its processes."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from threading import Event, Thread

from rich import get_console
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import Progress

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
_LIBRARIES = ("lightning", "torch", "torchmetrics", "jsonargparse")


def process_rank() -> int:
    """Return the rank of this process; 0 if it is the only one."""
    if lightning := sys.modules.get("lightning.pytorch.utilities"):
        rank: int = lightning.rank_zero_only.rank
        return rank
    # where Lightning would look, which takes seconds to import
    return int(next((os.environ[name] for name in _RANKS if name in os.environ), 0))


def inform(message: str) -> None:
    """Print a message to standard error, from the first process; a progress bar stays below it."""
    if process_rank() > 0:
        return
    if isinstance(sys.stderr, FileProxy):
        # a progress bar's proxy breaks long lines
        get_console().out(message, highlight=False)
    else:
        print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Print a warning to standard error, from the first process."""
    inform(f"warning: {message}")


def start_lines(bar: Callable[[], Progress | None], console: Console | None = None) -> Event:
    """Print what a bar says every half a minute until the event is set, unless it is redrawn."""
    console, ended = console or get_console(), Event()

    def write() -> None:
        while not ended.wait(30):
            if (progress := bar()) is not None:
                console.print(progress.get_renderable())

    if process_rank() == 0 and not (console.is_terminal or console.is_jupyter):
        Thread(target=write, daemon=True).start()
    return ended


def quiet_libraries() -> None:
    """Hide tips and warnings of libraries that users of kdpl cannot act on; keep errors."""
    for name in _LIBRARIES:
        warnings.filterwarnings("ignore", module=rf"{name}\b")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
