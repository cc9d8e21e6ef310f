"""One process at a time, by a lock on a file that goes with the processes that hold it, however they end."""

import errno
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

_HELD = (errno.EACCES, errno.EAGAIN)


def taken(lock: Callable[[int, int], None], descriptor: int, folder: Path) -> bool:
    """Take a lock; gives whether it is held now, and no other process has it.

    On a file system that knows no locks, a sentence says so, and it counts as held.

    Args:
        lock: ``fcntl.flock``, whose lock a process inherits with the descriptor, or ``fcntl.lockf``, whose lock it
            does not.
        descriptor: Of the file.
        folder: What is held so, for people.
    """
    import fcntl  # Windows has none

    try:
        lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        _say_no_locks(folder, error.strerror)
    return True


@cache
def _say_no_locks(folder: Path, fault: str) -> None:
    print(
        f"the file system of {folder} knows no locks ({fault}): see to it that no other process writes there",
        file=sys.stderr,
    )
