"""Rows of prediction tables."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""An image's predictions: ``path``, ``class``, ``probability``, ``class_2``, …, ``error``.

``classes`` and further scores, if requested, come before ``error``, and ``embedding`` after it.
"""

Write = Callable[[Path, Iterable[Row], Sequence[str]], None]
"""Writes a file, given its path, rows and columns."""
