"""Errors that a user can fix, each with a message of one sentence.

A message names the problem, the expected value and the fix. The command line prints it without a
traceback; ``--debug`` shows the traceback.
"""

import errno
import re
import unicodedata

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of the system for a full disk, quota or file."""


class KdplError(Exception):
    """Base class of all errors that a user of kdpl can fix.

    A DataLoader re-raises a worker's error in the main process with the worker's traceback as its
    message. Here the message stays the original sentence, and the traceback becomes a note: Python
    prints notes only below a traceback.

    Messages may quote untrusted files, so characters that affect a terminal are escaped.
    """

    def __init__(self, message: str = "") -> None:
        sentence = message
        if message.startswith("Caught ") and "\nOriginal Traceback" in message:
            # split the traceback of a DataLoader worker from the sentence
            self.add_note(message)
            name = f"{type(self).__module__}.{type(self).__qualname__}"
            sentence = message.rpartition(f"\n{name}: ")[2].strip()
        super().__init__("\n".join(map(visible, sentence.split("\n"))))


def reason(error: BaseException) -> str:
    """Return the first sentence of another library's error, for a message."""
    lines = str(error).strip().splitlines()
    return re.split(r"(?<=[.!?])\s", lines[0])[0].rstrip(".") if lines else type(error).__name__


def visible(text: str) -> str:
    """Escape characters that affect a terminal or break a line, in Python's notation.

    These are control characters, line separators and surrogates.
    """
    return "".join(
        c.encode("unicode_escape").decode("ascii")
        if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
        else c
        for c in text
    )


class ConfigError(KdplError):
    """An invalid setting, or incompatible settings."""


class DataError(KdplError):
    """A dataset, folder or image that is missing, empty or unreadable."""


class WeightsError(KdplError):
    """CLIP weights that are missing, unsupported, or different from the expected ones."""


class TrainingError(KdplError):
    """A failed training, for example one with a NaN loss."""


class ArtifactError(KdplError):
    """Missing, damaged or incompatible class vectors, teacher, classifier or checkpoint."""
