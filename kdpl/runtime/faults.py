"""What breaks though neither the code nor the settings are wrong: a full disk, a killed worker, too little memory.

The system and the libraries raise errors of their own for these. Here each becomes one sentence, and any error can
be told where it struck.
"""

import errno
import os
import re
import select
import sys

from kdpl.errors import KdplError, reason, visible
from kdpl.runtime.interrupt import word

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The system's error numbers for a disk, a quota or a file that is full."""

_GO_ON = "start the same command again to go on"
_MARK = "kdpl: "
_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (is killed by signal: .+?|exited unexpectedly)\b")
_SHARED_MEMORY = re.compile("Bus error|shared memory|unable to (?:write to file|open shared memory object|mmap)")


def sentence(error: BaseException) -> str | None:
    """Say what an error means to whoever ran the command; None where it is a mistake of the program."""
    marks = _marks(error)
    if isinstance(error, KeyboardInterrupt):
        return f"{word(error)}: {_GO_ON} ({'; '.join(marks)})" if marks else word(error)
    said = str(error) if isinstance(error, KdplError) else _of_another(error)
    return f"{said.rstrip('.')} ({'; '.join(marks)})" if said and marks else said


def mark(error: BaseException, where: str) -> None:
    """Tell an error where it struck and what is left, which its sentence then ends with."""
    error.add_note(f"{_MARK}{where}")


def reader_is_gone() -> bool:
    """Whether nobody reads standard output any more, as when ``head`` has seen enough; what is left goes nowhere then.

    A broken pipe may be another one as well, such as that of a worker process.
    """
    watch = select.poll()
    watch.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(event & select.POLLERR for _, event in watch.poll(0)):
        return False
    # Python would complain once more at its end
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _marks(error: BaseException | None) -> list[str]:
    # a worker that was killed may strike again while the trainer is taken down, in the place of the marked error
    marks: dict[str, None] = {}
    while error is not None:
        marks |= {note.removeprefix(_MARK): None for note in getattr(error, "__notes__", ()) if note.startswith(_MARK)}
        error = error.__context__
    return list(marks)


def _of_another(error: BaseException) -> str | None:
    if isinstance(error, OSError):
        return _of_the_system(error)
    text = reason(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"memory is short ({text}): lower data.init_args.batch_size or data.init_args.num_workers, and {_GO_ON}"
    if not isinstance(error, RuntimeError):
        return None
    if _SHARED_MEMORY.search(text):
        return (
            f"a worker process that loads images has no shared memory left ({text}): give the machine or container "
            f"more of it (docker --shm-size), or lower data.init_args.num_workers, and {_GO_ON}"
        )
    worker = _WORKER.search(text)
    if worker:
        return (
            f"a worker process that loads images {worker[1].replace('exited', 'ended')}, as one does for which memory "
            f"is short: lower data.init_args.num_workers if it was, and {_GO_ON}"
        )
    return None


def _of_the_system(error: OSError) -> str | None:
    what = f"{visible(str(error.filename))}: " if error.filename is not None else ""
    if error.errno in FULL:
        return f"{what}{error.strerror}: free some space, and {_GO_ON}"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{what}{error.strerror}: raise the limit (ulimit -n), or lower data.init_args.num_workers, and {_GO_ON}"
    if error.errno == errno.EIO:
        return f"{what}{error.strerror}: check the disk, and {_GO_ON}"
    # without a file's name it is not a file that a person could look at
    return f"{what}{error.strerror}: check path, permissions and space" if what else None
