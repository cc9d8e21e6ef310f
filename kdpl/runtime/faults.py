"""Errors from outside kdpl, such as a full disk, as one sentence each; imports no torch."""

from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager

from kdpl.errors import FULL, ConfigError, KdplError, reason, visible

REQUEUED = 75
"""Exit code of a command whose Slurm job is in the queue again; ``EX_TEMPFAIL`` of sysexits.h."""

_RESUME = "rerun the same command to resume"
_MARK = "kdpl: "


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as Ctrl-C does, with a different exit code."""


def interruption(error: Exception | KeyboardInterrupt) -> Exception | KeyboardInterrupt:
    """Return the interruption that an error arose from, as of workers that it ended, or itself."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__context__
    if cause is None or cause is error:
        return error
    for note in getattr(error, "__notes__", ()):
        cause.add_note(note)
    return cause


def sentence(error: BaseException) -> str | None:
    """Return an error as one sentence for the user; None if it is a bug."""
    notes = dict.fromkeys(getattr(error, "__notes__", ()))
    marks = [note.removeprefix(_MARK) for note in notes if note.startswith(_MARK)]
    if isinstance(error, KeyboardInterrupt):
        message: str | None = "terminated" if isinstance(error, Terminated) else "interrupted"
        return f"{message}: {_RESUME} ({'; '.join(marks)})" if marks else message
    message = str(error) if isinstance(error, KdplError) else _of_another(error)
    return f"{message.rstrip('.')} ({'; '.join(marks)})" if message and marks else message


def mark(error: BaseException, where: str) -> None:
    """Attach where an error occurred and what is kept, as the end of its sentence."""
    error.add_note(f"{_MARK}{where}")


def _of_another(error: BaseException) -> str | None:
    if isinstance(error, OSError):
        file = f"{visible(str(error.filename))}: " if error.filename is not None else ""
        if error.errno in FULL:
            return f"{file}{error.strerror}: free some space, and {_RESUME}"
        # a user could not fix an error without a file
        return f"{file}{error.strerror}: check path, permissions and disk" if file else None
    # torch's error has this name; importing torch to compare classes would take seconds
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            f"out of memory ({reason(error)}): lower data.init_args.batch_size or "
            f"data.init_args.num_workers, and {_RESUME}"
        )
    return None


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """Turn errors in parsing or building a user's settings into a KdplError; others pass."""
    try:
        yield
    except KdplError:
        raise
    except Exception as error:
        # a KdplError within the chain is the message
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
            causes.append(cause)
        inner = next((cause for cause in causes if isinstance(cause, KdplError)), None)
        if inner is not None:
            raise inner from error
        if isinstance(error, ModuleNotFoundError):
            raise ConfigError(
                f"a package is missing ({reason(error)}): install it, or change the setting that "
                "asks for it"
            ) from error
        if isinstance(error, ArgumentError | ValueError):
            # the innermost parser names the setting that is wrong
            innermost = [error, *(c for c in causes if isinstance(c, ArgumentError))][-1]
            message = " ".join(str(innermost).split())
            if "MLFLOW_ALLOW_FILE_STORE" in message:
                # at the end of a page, as jsonargparse turns MLflow's exception into text
                message = "MLflow takes no folder (set MLFLOW_TRACKING_URI to sqlite:///mlflow.db)"
            raise ConfigError(
                f"{message}: correct the config or the command line (fit --print_config shows all "
                "settings)"
            ) from error
        raise
