"""Lock of a run's folder: one process at a time writes into it."""

from pathlib import Path

from filelock import FileLock, Timeout

from kdpl.errors import ConfigError
from kdpl.runtime import slurm
from kdpl.runtime.files import remove_leftovers
from kdpl.runtime.run_folder import LOCK_FILE

# loader workers of a killed process hold its lock until they notice, every 5 s
_PATIENCE_SECONDS = 10
# longer than a network file system keeps the lock of a dead node: 90 s in NFS 4
_LEASE_SECONDS = 150


class RunLock:
    """Lock of a run's folder, held until it is released or the process ends in any way.

    The folder is created if it does not exist. A ConfigError if another process holds the lock
    longer than a killed process could.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / LOCK_FILE)
        try:
            self._lock.acquire(timeout=_LEASE_SECONDS if slurm.in_job() else _PATIENCE_SECONDS)
        except Timeout as error:
            raise ConfigError(
                f"another process is running into {folder}: wait until it ends, or choose another "
                "--out"
            ) from error
        # subfolders of stages have their locks
        remove_leftovers(folder, but_with=LOCK_FILE)

    def release(self) -> None:
        """Release the lock, and remove the folder if nothing was written into it."""
        self._lock.release()
        if [path.name for path in self._folder.iterdir()] == [LOCK_FILE]:
            (self._folder / LOCK_FILE).unlink()
            self._folder.rmdir()
