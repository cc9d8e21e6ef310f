"""Errors that are not kdpl's own, such as a full disk or an interruption, as one sentence each; imports no torch."""

import errno
import os
import select
import signal
import sys
from typing import NoReturn

from kdpl.errors import KdplError, reason, visible

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The system's error numbers for a disk, a quota or a file that is full."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell reports it."""

TERMINATED = 143
"""Exit code after SIGTERM, as a shell reports it."""

_RESUME = "rerun the same command to resume"
_MARK = "kdpl: "


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does, with its own exit code."""


def handle_sigterm() -> None:
    """Let SIGTERM raise ``Terminated`` in the main thread."""

    def terminate(*_: object) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)


def exit_code(error: KeyboardInterrupt) -> int:
    """Return the exit code of a command that this error ended."""
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


def sentence(error: BaseException) -> str | None:
    """Return an error as one sentence for the user; None where it is a bug."""
    marks = list(dict.fromkeys(_marks(error)))
    if isinstance(error, KeyboardInterrupt):
        said: str | None = "terminated" if isinstance(error, Terminated) else "interrupted"
        return f"{said}: {_RESUME} ({'; '.join(marks)})" if marks else said
    said = str(error) if isinstance(error, KdplError) else _of_another(error)
    return f"{said.rstrip('.')} ({'; '.join(marks)})" if said and marks else said


def mark(error: BaseException, where: str) -> None:
    """Attach where an error occurred and what is kept, which ends its sentence."""
    error.add_note(f"{_MARK}{where}")


def _marks(error: BaseException | None) -> list[str]:
    notes = getattr(error, "__notes__", ())
    return [note.removeprefix(_MARK) for note in notes if note.startswith(_MARK)]


def reader_is_gone() -> bool:
    """Return whether standard output is no longer read, as behind ``head``; what remains is then discarded."""
    watch = select.poll()
    watch.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(event & select.POLLERR for _, event in watch.poll(0)):
        return False
    # Python would report the broken pipe once more at exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _of_another(error: BaseException) -> str | None:
    if isinstance(error, OSError):
        return _of_the_system(error)
    # torch's error has this name; importing torch to compare classes would take seconds
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            f"memory is short ({reason(error)}): lower data.init_args.batch_size or data.init_args.num_workers, and "
            f"{_RESUME}"
        )
    return None


def _of_the_system(error: OSError) -> str | None:
    file = f"{visible(str(error.filename))}: " if error.filename is not None else ""
    if error.errno in FULL:
        return f"{file}{error.strerror}: free some space, and {_RESUME}"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{file}{error.strerror}: raise the limit (ulimit -n) or lower data.init_args.num_workers, and {_RESUME}"
    # an error without a file is not one that a user could fix
    return f"{file}{error.strerror}: check path, permissions and disk" if file else None
