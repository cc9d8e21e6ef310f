"""Rows of tables of predictions."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""An image's predictions: ``path``, ``class``, ``probability``, ``class_2``, …, ``error``.

``classes`` and further scores come before ``error``, and ``embedding`` after it, if asked for.
"""

Write = Callable[[Path, Iterable[Row], Sequence[str]], None]
"""Writes a file: its path, the rows and their columns."""
