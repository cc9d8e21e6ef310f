"""One fit at a time writes into a run's folder."""

import fcntl
import os
from pathlib import Path

from kdpl.errors import ConfigError

FILE = ".lock"


class RunLock:
    """Holds a run's folder for this process until it is released or the process ends, however it ends.

    A record lock, which worker processes do not inherit: one that outlives a killed parent holds nothing.

    Args:
        folder: The run's folder; made if it is not there. A network file system has to know locks, as NFS 4 does.

    Raises:
        ConfigError: Another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / FILE
        while True:
            self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(self._descriptor)
                raise ConfigError(
                    f"another process is running into {folder}: wait for its end, or choose another --out"
                ) from error
            if self._is_current():
                return
            # its holder removed it between our opening and our locking it
            os.close(self._descriptor)

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._file.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let others in, and remove the folder if nothing was written into it."""
        self._file.unlink(missing_ok=True)
        os.close(self._descriptor)
        if not any(self._folder.iterdir()):
            self._folder.rmdir()
