"""Errors from outside kdpl, such as a full disk or an invalid setting, as one sentence each.

Imports no torch.
"""

import errno
import os
import re
import select
import signal
import sys
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from kdpl.errors import ConfigError, KdplError, reason, visible

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The system's error numbers for a disk, a quota or a file that is full."""

_RESUME = "rerun the same command to resume"
_MARK = "kdpl: "
_LONGEST = 200


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does, with its own exit code."""


def handle_sigterm() -> None:
    """Let SIGTERM raise ``Terminated`` in the main thread."""

    def terminate(*_: object) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)


def sentence(error: BaseException) -> str | None:
    """Return an error as one sentence for the user; None where it is a bug."""
    notes = dict.fromkeys(getattr(error, "__notes__", ()))
    marks = [note.removeprefix(_MARK) for note in notes if note.startswith(_MARK)]
    if isinstance(error, KeyboardInterrupt):
        message: str | None = "terminated" if isinstance(error, Terminated) else "interrupted"
        return f"{message}: {_RESUME} ({'; '.join(marks)})" if marks else message
    message = str(error) if isinstance(error, KdplError) else _of_another(error)
    return f"{message.rstrip('.')} ({'; '.join(marks)})" if message and marks else message


def mark(error: BaseException, where: str) -> None:
    """Attach where an error occurred and what is kept, which ends its sentence."""
    error.add_note(f"{_MARK}{where}")


def reader_is_gone() -> bool:
    """Return whether standard output is no longer read, as behind ``head``.

    What remains is then discarded.
    """
    watch = select.poll()
    watch.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(event & select.POLLERR for _, event in watch.poll(0)):
        return False
    # Python would report the broken pipe once more at exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _of_another(error: BaseException) -> str | None:
    if isinstance(error, OSError):
        file = f"{visible(str(error.filename))}: " if error.filename is not None else ""
        if error.errno in FULL:
            return f"{file}{error.strerror}: free some space, and {_RESUME}"
        # an error without a file is not one that a user could fix
        return f"{file}{error.strerror}: check path, permissions and disk" if file else None
    if (
        isinstance(error, ModuleNotFoundError)
        and error.name
        and error.name.partition(".")[0] != "kdpl"
    ):
        return (
            f"{sys.executable} has no package {error.name}: activate the environment that kdpl is "
            "installed in, such as by source .venv/bin/activate, or install it"
        )
    # torch's error has this name; importing torch to compare classes would take seconds
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            f"out of memory ({reason(error)}): lower data.init_args.batch_size or "
            f"data.init_args.num_workers, and {_RESUME}"
        )
    return None


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """Turn errors of a user's settings, parsed or built, into a KdplError; all others pass.

    Raises:
        ConfigError: Settings do not parse, or ask for a package that is missing.
        KdplError: A class raised it when it was built; jsonargparse wraps it.
    """
    try:
        yield
    except KdplError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, KdplError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from error
        if isinstance(error, ModuleNotFoundError):
            raise ConfigError(
                f"a package is missing ({reason(error)}): install it, or change the setting that "
                "asks for it"
            ) from error
        if isinstance(error, ArgumentError | ValueError):
            raise ConfigError(
                f"{in_one_line(error)}: correct the config or the command line (--print_config "
                "shows all settings)"
            ) from error
        raise


def in_one_line(error: Exception) -> str:
    """Return a parser's message in one line: its innermost report, after the headings above it.

    Reports on settings within settings are nested by their indents, with one report for each type
    that is possible, and the value at the end.
    """
    # types by their names alone
    told = re.sub(r"<class '(?:\w+\.)*(\w+)'>|\btyping\.(\w+)", r"\1\2", str(error))
    lines = [line for line in told.splitlines() if line.strip()]
    indents = [len(line) - len(line.lstrip(" -")) for line in lines]
    level = max(indents, default=0) + 1
    # of several, not one in a list of what is possible
    at = max(
        range(len(lines)),
        key=lambda i: (indents[i], not lines[i].lstrip().startswith("-")),
        default=0,
    )
    kept: list[str] = []
    for line, indent in zip(lines[at::-1], indents[at::-1], strict=True):
        text = line.strip(" -:.")
        setting = re.search(r'"([^"]+)"$', text)
        # a single word above a report is the title of a list
        if indent < level and (setting or " " in text or not kept):
            kept.insert(0, setting[1] if setting else text[:_LONGEST])
        level = min(level, indent)
    value = lines[-1].partition(": ")[2] if at < len(lines) - 1 else ""
    if value.startswith("NestedArg("):  # the parser's own object for an option
        value = ""
    return (": ".join(kept) or type(error).__name__) + (
        f" ({value})" if 0 < len(value) < _LONGEST else ""
    )
