"""Names of classes, and which are valid."""

import unicodedata
from typing import Annotated

from pydantic import AfterValidator

from kdpl.errors import visible

_LONGEST = 1000  # CLIP's text tower reads 77 tokens, which are a few hundred letters


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC).

    A class is then spelt the same, whichever system or program wrote its name.
    """
    return unicodedata.normalize("NFC", name)


def fault_of_name(name: object) -> str | None:
    """Return the fault of a class name, as the rest of a sentence about it; None if it is valid.

    Refused are characters that cannot be shown: line breaks, control characters, marks that change
    a line's direction, and lone surrogates. Those with a meaning in tables, pages or terminals are
    escaped there.
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


def _valid(name: str) -> str:
    fault = fault_of_name(name)
    if fault:
        raise ValueError(f"the class name {fault}")
    return composed(name)


ClassName = Annotated[str, AfterValidator(_valid)]
"""A class name in the metadata of an artifact."""


ClassText = str | tuple[str, ...]
"""Text that the text tower reads for a class; of several texts, the features are averaged."""
