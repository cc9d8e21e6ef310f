"""What any process owes the one that started it: to end with it, and at its word."""

import multiprocessing
import os
import signal
import sys
import threading
from types import TracebackType

from kdpl.runtime.interrupt import hear


def begin() -> None:
    """Begin as a worker: Ctrl-C is for whoever started it, SIGTERM ends it without a word, and so does that one's end.

    Torch's own workers look at their parent's number, and that is a fork server's within a step of ``run``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    sys.excepthook = _complain
    hear()
    end_with_parent()


def _complain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say nothing of a starter that was interrupted in the middle of taking over what this worker handed it."""
    if not issubclass(kind, (ConnectionError, EOFError, multiprocessing.AuthenticationError)):
        sys.__excepthook__(kind, error, trace)


def end_with_parent() -> None:
    """Let this process go when its parent has: two processes must not write into one run's folder."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)
