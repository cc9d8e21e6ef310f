"""Validation and display of class names."""

import unicodedata
from typing import Annotated

from pydantic import AfterValidator

from kdpl.errors import visible

_LONGEST = 1000  # CLIP's text tower reads 77 tokens, a few hundred letters


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), the same from any system or program."""
    return unicodedata.normalize("NFC", name)


def fault_of_name(name: object) -> str | None:
    """Return what is wrong with a class name, as the rest of a sentence; None if it is valid.

    Characters that cannot be shown are refused: line breaks, control characters, marks that change
    a line's direction, and lone surrogates. Characters with a meaning in tables, pages or terminals
    are escaped there.
    """
    if not isinstance(name, str):
        return f"is of type {type(name).__name__} instead of text"
    if not name.strip():
        return "is empty"
    if len(name) > _LONGEST:
        return f"has {len(name)} characters, expected at most {_LONGEST} ('{visible(name[:40])}…')"
    if visible(name) != name:
        return f"has characters that cannot be shown ('{visible(name)[:80]}')"
    return None


def shorten(name: str, length: int = 60) -> str:
    """Fit a name into one line: no control characters, and an ellipsis at the end of a long one."""
    line = " ".join(name[: 10 * length].split())
    shown = "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c).startswith("C") else c for c in line
    )
    fits = len(shown) <= length and len(name) <= 10 * length
    return shown if fits else shown[: length - 1].rstrip() + "…"


def _valid(name: str) -> str:
    problem = fault_of_name(name)
    if problem:
        raise ValueError(f"the class name {problem}")
    return composed(name)


ClassName = Annotated[str, AfterValidator(_valid)]
"""Class name in the metadata of an artifact."""

ClassText = str | tuple[str, ...]
"""Text that the text tower reads for a class, or several, whose features are averaged."""
