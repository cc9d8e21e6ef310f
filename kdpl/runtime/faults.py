"""Errors from outside kdpl, such as a full disk, as one sentence each; imports no torch."""

import os
import re
import signal
import threading
import time
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from kdpl.errors import FULL, ConfigError, KdplError, reason, visible

_STARTER = "KDPL_STARTER"  # variable of the environment
_AGAIN_SECONDS = 0.05
# ends of qualified names; the last two are callbacks of weak references, such as to a module's lock
_FINALISERS = ("__del__", "finalize.__call__", "_get_module_lock.<locals>.cb")
_RESUME = "rerun the same command to resume"
_MARK = "kdpl: "


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as Ctrl-C does, with a different exit code."""


class _Interrupted(KeyboardInterrupt):
    """Ctrl-C: after a plain one in an ``exec``, even if caught, Python exits by the signal."""


def handle_signals() -> None:
    """Let SIGTERM raise ``Terminated`` in the main thread, and Ctrl-C a ``KeyboardInterrupt``.

    Python ignores errors in finalisers, such as of a loader's workers: a signal that comes during
    one is sent again after it.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if _in_finaliser(frame):
            timer = threading.Timer(_AGAIN_SECONDS, os.kill, [os.getpid(), number])
            timer.daemon = True
            timer.start()
            return
        raise Terminated if number == signal.SIGTERM else _Interrupted

    signal.signal(signal.SIGTERM, end)
    # a shell's background jobs ignore it
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def _in_finaliser(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_qualname.endswith(_FINALISERS):
        frame = frame.f_back
    return frame is not None


def end_together(is_first: bool) -> None:
    """Let processes that the first one of a training starts end within a second of it."""
    if is_first:
        os.environ[_STARTER] = str(os.getpid())
        return

    def watch(starter: int) -> None:
        while os.getppid() == starter:
            time.sleep(1)
        os._exit(1)

    # torchrun, Slurm or a person may have started it instead
    if _STARTER in os.environ:
        threading.Thread(target=watch, args=[int(os.environ[_STARTER])], daemon=True).start()


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


# as jsonargparse says that a value is of another type
_WRONG_VALUE = re.compile(r'Parser key "([\w.]+)": (.*) value: (.*)')
_EXPECTED = re.compile(
    r"(?:Expected an? <class '|Not of type )(\w+)|Expected an? typing\.Literal\[(.*?)\]"
)
_KINDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "PositiveInt": "an integer above 0",
    "NonNegativeInt": "an integer of at least 0",
    "PositiveFloat": "a number above 0",
    "NonNegativeFloat": "a number of at least 0",
    "OpenUnitInterval": "a number between 0 and 1",
    "ClosedUnitInterval": "a number from 0 to 1",
}


@contextmanager
def in_one_sentence(hint: Callable[[str], str] = lambda _: "") -> Iterator[None]:
    """Turn errors in parsing or building a user's settings into a KdplError; others pass.

    Args:
        hint: Returns an addition to the message about settings that do not parse.
    """
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
                f"{_restated(message)}{hint(message)}: correct the config or the command line "
                "(fit --print_config shows all settings)"
            ) from error
        raise


def _restated(message: str) -> str:
    """Say what a setting is, and was expected to be, if a message of jsonargparse does."""
    wrong = _WRONG_VALUE.fullmatch(message)
    if wrong is None:
        return message
    key, problem, value = wrong.groups()
    # one of each type of a union
    first, *parts = re.split(r" Errors: - | - ", problem)
    matches = [_EXPECTED.search(part) for part in parts or [first]]
    expected = [
        match[2].replace(", ", " or ") if match[2] else _KINDS.get(match[1], match[1])
        for match in matches
        if match is not None
    ]
    if len(expected) < len(matches):
        return message
    return f"{key} is {value}, expected {' or '.join(expected)}"
