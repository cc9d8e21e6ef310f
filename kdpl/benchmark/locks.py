"""One process at a time works on a task; a lock goes with the processes that hold it, however they end."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdpl.runtime.file_lock import taken

_FOLDER = ".locks"


@contextmanager
def lock(out: Path, name: str) -> Iterator[int | None]:
    """Take a task's lock, or find that another process has it.

    Args:
        out: The campaign's folder.
        name: The task's name.

    Yields:
        The descriptor of the locked file, to be handed to the process that does the work, or None.
    """
    file = out / _FOLDER / f"{name.replace('/', '+')}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield descriptor if taken(fcntl.flock, descriptor, file.parent) else None
    finally:
        # no unlocking by hand: a process that works on has a copy of the descriptor and keeps the lock
        os.close(descriptor)
