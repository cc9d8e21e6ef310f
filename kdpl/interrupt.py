"""Ctrl-C: held back where it would garble something, never lost, and one line in the end; imports no torch.

Python raises KeyboardInterrupt wherever a program happens to be: within an import that takes it for a missing module,
within a destructor, which swallows it, within a half-built object or a process that is just starting. Each of these
prints a traceback that says nothing to whoever pressed Ctrl-C.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, as a shell gives it."""

_SOON_SECONDS = 0.01


@contextmanager
def held_back() -> Iterator[None]:
    """Hold Ctrl-C back for a moment; it strikes after it.

    What starts within the moment never hears it, unless it calls :func:`hear`: workers, which whoever started them
    sends home, and commands, which are not ready yet to say something better than a traceback.
    """
    if not _in_main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    came = False

    def note(*_: object) -> None:
        nonlocal came
        came = True

    # the mask is what others inherit; here a signal may come by way of any other thread
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


def hear() -> None:
    """Hear Ctrl-C in a process that was started while it was held back."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def ends_at_once(also: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Let Ctrl-C end the process in a time in which there is nothing to lose, and in which it would not be heard.

    Libraries swallow the error in the middle of an import, and wait for other processes in code that is not Python's.

    Args:
        also: What else has to be done then; called in another thread.
    """
    if not _strikes():
        yield
        return
    told, tells = os.pipe()
    os.set_blocking(tells, False)
    threading.Thread(target=_end_when_told, args=(told, also), daemon=True).start()
    signal.signal(signal.SIGINT, lambda *_: None)
    # written to by the system's own handler, whatever runs
    before = signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(tells)


def _end_when_told(told: int, also: Callable[[], object]) -> None:
    while number := os.read(told, 1):
        if number[0] == signal.SIGINT:
            if speaks():
                # by the system: what prints in Python may be locked by what was just being printed
                os.write(2, b"interrupted\n")
            also()
            os._exit(INTERRUPTED)
    os.close(told)


def speaks() -> bool:
    """Whether it is for this process to say that it was interrupted: of those of one training, the first does."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


@contextmanager
def whole_process() -> Iterator[None]:
    """Hear Ctrl-C well in a process that has one thing to do, and end of it without a word once that is done."""
    complain = sys.unraisablehook

    def hook(what: Any) -> None:  # noqa: ANN401
        if isinstance(what.exc_value, KeyboardInterrupt):
            # a destructor swallowed it; by a thread, for raised here it would be swallowed again
            threading.Thread(target=_strike_again, daemon=True).start()
        else:
            complain(what)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if _strikes():
            # Python cleans up, and would tell of each thing that it could not
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _strikes() -> bool:
    """Whether Ctrl-C raises KeyboardInterrupt: not where the shell, or who handles one already, ignores it."""
    return _in_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _strike_again() -> None:
    time.sleep(_SOON_SECONDS)
    os.kill(os.getpid(), signal.SIGINT)
