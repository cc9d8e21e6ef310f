"""What can go wrong through no fault of the code: one family, one sentence each.

A message names the thing, says what was expected and what to do. The command line prints it
without a traceback; ``--debug`` shows the traceback.
"""

import re


class KdplError(Exception):
    """Base of every error that a user of kdpl can mend.

    A DataLoader builds a worker's error anew in the main process, with the worker's whole traceback as its message.
    Here the message stays the sentence that was raised, and the traceback becomes a note, which Python prints below
    a traceback and nowhere else.
    """

    def __init__(self, message: str = "") -> None:
        worker_traceback = message if message.startswith("Caught ") and "\nOriginal Traceback" in message else None
        if worker_traceback is not None:
            message = message.rpartition(f"\n{type(self).__module__}.{type(self).__qualname__}: ")[2].strip()
        super().__init__(message)
        if worker_traceback is not None:
            self.add_note(worker_traceback)


def reason(error: BaseException) -> str:
    """Give the first sentence of another library's error, to be quoted within a sentence of one's own."""
    lines = str(error).strip().splitlines()
    return re.split(r"(?<=[.!?])\s", lines[0])[0].rstrip(".") if lines else type(error).__name__


class ConfigError(KdplError):
    """A setting that cannot be, or settings that do not go together."""


class DataError(KdplError):
    """A dataset, folder or image that is missing, empty or unreadable."""


class WeightsError(KdplError):
    """CLIP weights that are missing, of another kind than supported, or not those that were expected."""


class ArtifactError(KdplError):
    """Class vectors, a teacher or a classifier that is missing, damaged or does not fit."""
