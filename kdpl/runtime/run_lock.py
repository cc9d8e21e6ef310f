"""One fit at a time writes into a run's folder."""

import fcntl
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kdpl.errors import ConfigError
from kdpl.runtime.file_lock import taken
from kdpl.runtime.files import remove_leftovers
from kdpl.runtime.launch import name_of_start, rank
from kdpl.runtime.run_folder import PREVIOUS
from kdpl.runtime.slurm import in_job

FILE = ".lock"

# longer than a network file system keeps the lock of a node that went down: NFS 4 gives it 90 s
_LEASE_SECONDS = 150
_LOOK_SECONDS = 1
# the first may have begun later, on a node that reads more slowly
_IMPORTS_SECONDS = 120
_GLANCE_SECONDS = 0.1
_SILENT_SECONDS = 10


class RunLock:
    """Holds a run's folder for this process until it is released or the process ends, however it ends.

    A record lock, which worker processes do not inherit: one that outlives a killed parent holds nothing.

    Args:
        folder: The run's folder; made if it is not there. On a network file system the lock counts on all nodes if the
            system knows locks, as NFS 4 does; on one that knows none, a sentence says so.
        patience: Seconds to wait for the holder's end. None: none, but in a Slurm job, where nobody waits for the
            answer, and whose own first start may have left the lock on a node that went down.

    Raises:
        ConfigError: Another process holds it.
    """

    def __init__(self, folder: Path, patience: float | None = None) -> None:
        self._folder = folder
        self._file = folder / FILE
        seconds = patience if patience is not None else _LEASE_SECONDS if in_job() else 0
        end = time.monotonic() + seconds
        waiting = False
        while not self._taken():
            if not waiting and seconds:
                print(f"another process is running into {folder}: waiting {seconds} s for its end", file=sys.stderr)
            waiting = True
            if time.monotonic() >= end:
                raise ConfigError(
                    f"another process is running into {folder}{self._holder()}: wait for its end, or choose another "
                    "--out"
                )
            time.sleep(_LOOK_SECONDS)

    def _taken(self) -> bool:
        # each time: a holder that leaves nothing removes it
        self._folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        if not taken(fcntl.lockf, self._descriptor, self._folder):
            os.close(self._descriptor)
            return False
        if not self._is_current():
            # its holder removed it between our opening and our locking it
            os.close(self._descriptor)
            return self._taken()
        os.ftruncate(self._descriptor, 0)
        # what a killed holder was writing; a stage's own fit may be writing there
        remove_leftovers(self._folder, but_with=FILE)
        text = f"process {os.getpid()} on {socket.gethostname()}\n{name_of_start()}"
        os.write(self._descriptor, text.encode())
        # other nodes read it
        os.fsync(self._descriptor)
        return True

    def _holder(self) -> str:
        text = _read(self._file).partition("\n")[0]
        return f" ({text})" if text else ""

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


def await_first(folder: Path, finished: Callable[[], bool]) -> None:
    """Wait, as another process of a training, until its first one holds the folder or sees that all is done there.

    What lies in the folder before is not to be believed: another run may be writing it, whose end the first waits for.
    If the first gives up, whoever started them ends this one.

    Args:
        folder: The run's folder.
        finished: Says whether all is done there.

    Raises:
        ConfigError: The first does not come.
    """
    begin = time.monotonic()
    said = False
    while (seconds := time.monotonic() - begin) < _LEASE_SECONDS + _IMPORTS_SECONDS:
        if _read(folder / FILE).partition("\n")[2] == name_of_start() or finished():
            return
        if seconds > _SILENT_SECONDS and not said:
            print(f"process {rank()}: waiting until the first one of this training holds {folder}", file=sys.stderr)
            said = True
        time.sleep(_GLANCE_SECONDS)
    raise ConfigError(
        f"process {rank()} waited {seconds:.0f} s for the first one of this training to hold {folder}: see what that "
        "one said, and that all nodes share this folder"
    )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""


def tidy(folder: Path) -> None:
    """Remove from a finished run what its process left that was killed just before its end."""
    if (folder / PREVIOUS).exists() or (folder / FILE).exists():
        # held by one that is about to end, or not ours to remove: it is in nobody's way
        with suppress(ConfigError, OSError):
            lock = RunLock(folder, patience=0)
            (folder / PREVIOUS).unlink(missing_ok=True)
            lock.release()
