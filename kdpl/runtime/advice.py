"""Commands that messages advise."""

import shlex
from pathlib import Path


def command(*words: str | Path) -> str:
    """Return a command of kdpl as text to paste into a shell, in any folder.

    Paths become absolute, and words are quoted where the shell needs it.
    """
    texts = [str(word.absolute()) if isinstance(word, Path) else word for word in words]
    return shlex.join(["python", "-m", "kdpl", *texts])
