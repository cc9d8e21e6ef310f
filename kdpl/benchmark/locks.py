"""One process at a time works on a task; a lock goes with the processes that hold it, however they end."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FOLDER = ".locks"


@contextmanager
def lock(out: Path, name: str) -> Iterator[int | None]:
    """Take a task's lock, or find that another process has it.

    Args:
        out: The campaign's folder; on a network file system it needs one that knows locks, as NFS 4 does.
        name: The task's name.

    Yields:
        The descriptor of the locked file, to be handed to the process that does the work, or None.
    """
    file = out / _FOLDER / f"{name.replace('/', '+')}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        # no unlocking by hand: a process that works on has a copy of the descriptor and keeps the lock
        os.close(descriptor)
