"""Messages of a training, printed once for all of its processes."""

import logging
import sys
import warnings

from lightning.pytorch.utilities import rank_zero_only
from rich import get_console
from rich.file_proxy import FileProxy

_LIBRARIES = ("lightning", "torch", "torchmetrics", "jsonargparse")


def process_rank() -> int:
    """Return this process's rank in its training; 0 where there are no others."""
    rank: int = getattr(rank_zero_only, "rank", 0)
    return rank


@rank_zero_only
def inform(message: str) -> None:
    """Print a message to standard error, from the first process; a progress bar stays below it."""
    if isinstance(sys.stderr, FileProxy):
        # of a progress bar, and breaks what is longer than a line
        get_console().out(message, highlight=False)
    else:
        print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Print a warning to standard error, from the first process."""
    inform(f"warning: {message}")


def quiet_libraries() -> None:
    """Hide tips and warnings of libraries, which users of kdpl cannot act on; keep errors."""
    for name in _LIBRARIES:
        warnings.filterwarnings("ignore", module=rf"{name}\b")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
