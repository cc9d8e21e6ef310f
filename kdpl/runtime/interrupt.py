"""Ctrl-C and SIGTERM: heard at any moment, never lost, and answered by one line; imports no torch.

Python raises KeyboardInterrupt wherever a program happens to be: within an import that takes it for a missing module,
within a destructor, which swallows it, within a half-built object or a process that is just starting. Each of these
prints a traceback that says nothing to whoever pressed Ctrl-C. And code that is not Python's, such as that which waits
for the other processes of a training, does not hear it at all.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from kdpl.runtime.launch import first_process, rank

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, as a shell gives it."""

TERMINATED = 143
"""Exit code of a command that SIGTERM ended, as a shell gives it."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SOON_SECONDS = 0.01
ECHO_SECONDS = 0.5
"""Within which a signal is the same once more, as where both a group and the one who passes it on were signalled."""

_in_whole_process = False


class Terminated(KeyboardInterrupt):
    """SIGTERM: a command ends as by Ctrl-C, with another word and another code."""


def exit_code(error: KeyboardInterrupt) -> int:
    """Give the exit code of a command that was ended so."""
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


def word(error: KeyboardInterrupt) -> str:
    """Give what a command says that was ended so."""
    return "ended by SIGTERM" if isinstance(error, Terminated) else "interrupted"


def speaks() -> bool:
    """Whether it is for this process to say that it was ended: of those of one training, the first does."""
    return rank() == 0


def terminate(*_: object) -> None:
    """Raise ``Terminated``: the handler of SIGTERM.

    Raises:
        Terminated: Always.
    """
    raise Terminated


def terminate_once(*_: object) -> None:
    """Raise ``Terminated``, and let what is done thereupon not be disturbed by another SIGTERM.

    Raises:
        Terminated: Always.
    """
    signal.signal(signal.SIGTERM, unheard)
    raise Terminated


def unheard(*_: object) -> None:
    """Do nothing: the handler of a signal that is for another process."""


@contextmanager
def whole_process() -> Iterator[None]:
    """Hear both signals well in a process that has one thing to do, and end by them without a word once it is done.

    A process that the first one of a training started hears neither: the first one ends it.
    """
    global _in_whole_process
    if not _in_main_thread():
        yield
        return
    complain = sys.unraisablehook

    def hook(what: Any) -> None:  # noqa: ANN401
        if isinstance(what.exc_value, KeyboardInterrupt):
            # a destructor swallowed it; by a thread, for raised here it would be swallowed again
            number = signal.SIGTERM if isinstance(what.exc_value, Terminated) else signal.SIGINT
            threading.Thread(target=_strike_again, args=(number,), daemon=True).start()
        else:
            complain(what)

    sys.unraisablehook = hook
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminate)
    if first_process() is not None:
        for number in _SIGNALS:
            signal.signal(number, unheard)
    _in_whole_process = True
    try:
        yield
    finally:
        _in_whole_process = False
        for number in _striking():
            # Python cleans up, and would tell of each thing that it could not
            signal.signal(number, signal.SIG_DFL)


def in_whole_process() -> bool:
    """Whether this process has a command to do, and nothing else."""
    return _in_whole_process


@contextmanager
def held_back() -> Iterator[None]:
    """Hold both signals back for a moment; they strike after it.

    What starts within the moment never hears them, unless it calls :func:`hear`: workers, which whoever started them
    sends home, and commands, which are not ready yet to say something better than a traceback.
    """
    if not _in_main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    came: list[int] = []
    before = _heard_by(lambda number, _: came.append(number))
    mask = None
    try:
        # this is what others inherit; here a signal may come by way of any other thread
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _restore(before)
        if came:
            signal.raise_signal(signal.Signals(came[0]))


def hear() -> None:
    """Hear both signals in a process that was started while they were held back."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


@contextmanager
def ends_at_once(also: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Let both signals end the process in a time in which there is nothing to lose, and they would not be heard.

    Libraries swallow the error in the middle of an import, and wait for other processes in code that is not Python's.

    Args:
        also: What else has to be done then; called in another thread.
    """
    numbers = _striking()
    if not numbers:
        yield
        return
    came: list[int] = []
    before = _heard_by(lambda number, _: came.append(number), numbers)
    tells, thread, wakeup = _wait_for_one(numbers, also)
    for number in came:
        os.write(tells, bytes([number]))
    came.clear()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        os.close(tells)
        thread.join()
        _restore(before)
        if came:
            signal.raise_signal(signal.Signals(came[0]))


def end_now(code: int, said: str) -> NoReturn:
    """End the process from any of its threads, whatever the others do, perhaps in code that is not Python's.

    Args:
        code: Its exit code.
        said: What it says, if anybody reads it.
    """
    with suppress(OSError):
        # by the system: what prints in Python may be locked by what was just being printed
        os.write(2, said.encode())
    os._exit(code)


def next_ends_at_once(also: Callable[[], object] = lambda: None) -> None:
    """Let the next signal end the process at once: one came already, and what is still done takes too long.

    Only where the process has one thing to do; elsewhere Ctrl-C is its owner's affair.

    Args:
        also: What else has to be done then; called in another thread.
    """
    if _in_whole_process and _in_main_thread():
        # Lightning ignores Ctrl-C from here on
        for number in _SIGNALS:
            signal.signal(number, unheard)
        _wait_for_one(_SIGNALS, also, ECHO_SECONDS)


def _wait_for_one(
    numbers: tuple[signal.Signals, ...], also: Callable[[], object], deaf: float = 0.0
) -> tuple[int, threading.Thread, int]:
    """Wait for a signal in a thread; gives where to tell it of one, the thread, and who was told before."""
    told, tells = os.pipe()
    os.set_blocking(tells, False)
    thread = threading.Thread(target=_end_when_told, args=(told, numbers, also, deaf), daemon=True)
    thread.start()
    # written to by the system's own handler, whatever runs
    return tells, thread, signal.set_wakeup_fd(tells, warn_on_full_buffer=False)


def _end_when_told(told: int, numbers: tuple[signal.Signals, ...], also: Callable[[], object], deaf: float) -> None:
    begin = time.monotonic()
    while number := os.read(told, 1):
        if number[0] in numbers and time.monotonic() - begin >= deaf:
            error = Terminated() if number[0] == signal.SIGTERM else KeyboardInterrupt()
            try:
                also()
            finally:
                end_now(exit_code(error), f"{word(error)}\n" if speaks() else "")
    os.close(told)


def _heard_by(
    handler: Callable[[int, FrameType | None], object], numbers: tuple[signal.Signals, ...] = _SIGNALS
) -> dict[signal.Signals, Any]:
    """Replace the handlers of signals that are not ignored; gives what they were."""
    before = {}
    for number in numbers:
        was = signal.getsignal(number)
        # what starts from a process that ignores a signal, as the shell told it to, ignores it too
        if was is not signal.SIG_IGN and was is not None:
            before[number] = signal.signal(number, handler)
    return before


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _striking() -> tuple[signal.Signals, ...]:
    """The signals that raise an error here: not those that the shell, or who handles one already, ignores."""
    if not _in_main_thread():
        return ()
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: terminate}
    return tuple(number for number, handler in handlers.items() if signal.getsignal(number) is handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _strike_again(number: int) -> None:
    time.sleep(_SOON_SECONDS)
    os.kill(os.getpid(), number)
