"""Lock of a run's folder: one process at a time writes into it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kdpl.errors import ConfigError
from kdpl.runtime.files import remove_leftovers
from kdpl.runtime.run_folder import LOCK_FILE

# loader workers of a killed process hold its lock until they notice, every 5 s
_PATIENCE_SECONDS = 10
# longer than a network file system keeps the lock of a dead node: 90 s in NFS 4
_LEASE_SECONDS = 150


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder for the block, or until the process ends in any way.

    The folder is created if it does not exist, and removed again if nothing was written into it. A
    ConfigError if another process holds the lock longer than a killed process could.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=_LEASE_SECONDS if "SLURM_JOB_ID" in os.environ else _PATIENCE_SECONDS)
    except Timeout as error:
        raise ConfigError(
            f"another process is running into {folder}: wait until it ends, or choose another --out"
        ) from error
    try:
        # subfolders of stages have their locks
        remove_leftovers(folder, but_with=LOCK_FILE)
        yield
    finally:
        lock.release()
        if [path.name for path in folder.iterdir()] == [LOCK_FILE]:
            (folder / LOCK_FILE).unlink()
            folder.rmdir()
