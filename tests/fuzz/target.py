"""What is garbled, and who reads it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """A file of strangers and what reads it.

    Attributes:
        file: The file, below the folder that all of them are in.
        read: Reads it, given its path.
    """

    file: str
    read: Callable[[Path], object]


Build = Callable[[Path], dict[str, Target]]
"""Writes whole files into a folder, and gives their readers by name."""
