"""What can go wrong through no fault of the code: one family, one sentence each.

A message names the thing, says what was expected and what to do. The command line prints it
without a traceback; ``--debug`` shows the traceback.
"""

import re
import unicodedata

# marks that turn the direction of what follows them, so that a line reads otherwise than it is
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class KdplError(Exception):
    """Base of every error that a user of kdpl can mend.

    A DataLoader builds a worker's error anew in the main process, with the worker's whole traceback as its message.
    Here the message stays the sentence that was raised, and the traceback becomes a note, which Python prints below
    a traceback and nowhere else.

    A message may quote names and texts from files of anybody's: what would act on a terminal stands in it escaped.
    """

    def __init__(self, message: str = "") -> None:
        worker_traceback = message if message.startswith("Caught ") and "\nOriginal Traceback" in message else None
        if worker_traceback is not None:
            message = message.rpartition(f"\n{type(self).__module__}.{type(self).__qualname__}: ")[2].strip()
        super().__init__("\n".join(map(visible, message.split("\n"))))
        if worker_traceback is not None:
            self.add_note(worker_traceback)


def reason(error: BaseException) -> str:
    """Give the first sentence of another library's error, to be quoted within a sentence of one's own."""
    lines = str(error).strip().splitlines()
    return re.split(r"(?<=[.!?])\s", lines[0])[0].rstrip(".") if lines else type(error).__name__


def visible(text: str) -> str:
    """Give a text in which nothing acts on a terminal or breaks a line, which then stands there as Python writes it.

    These are control characters, line separators, marks that turn the direction, and halves of characters.
    """
    if text.isprintable():
        return text
    return "".join(_shown(c) if _acts(c) else c for c in text)


def _acts(character: str) -> bool:
    return character in _TURNING or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def _shown(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class ConfigError(KdplError):
    """A setting that cannot be, or settings that do not go together."""


class DataError(KdplError):
    """A dataset, folder or image that is missing, empty or unreadable."""


class WeightsError(KdplError):
    """CLIP weights that are missing, of another kind than supported, or not those that were expected."""


class TrainingError(KdplError):
    """A training that came to nothing, such as one whose loss is no number any more."""


class ArtifactError(KdplError):
    """Class vectors, a teacher or a classifier that is missing, damaged or does not fit."""


class PeerError(KdplError):
    """Another process of a training on several that ended before its time."""
