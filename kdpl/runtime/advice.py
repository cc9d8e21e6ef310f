"""Commands and paths that messages advise."""

import os
import shlex
from pathlib import Path


def absolute(path: str | Path) -> Path:
    """Return an absolute path without ``~`` and, but after a symbolic link, without ``..``."""
    full = Path(path).expanduser().absolute()
    normal = Path(os.path.normpath(full))
    return normal if normal.resolve() == full.resolve() else full


def command(*words: str | Path) -> str:
    """Return a command of kdpl, quoted and with absolute paths, to paste into a shell."""
    texts = [str(absolute(word)) if isinstance(word, Path) else word for word in words]
    return shlex.join(["python", "-m", "kdpl", *texts])
