"""How class names are shown."""

import unicodedata


def shorten(name: str, length: int = 60) -> str:
    """Fit a name into one line: no control characters, and an ellipsis at the end of a long one."""
    line = " ".join(name[: 10 * length].split())
    shown = "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c).startswith("C") else c for c in line
    )
    fits = len(shown) <= length and len(name) <= 10 * length
    return shown if fits else shown[: length - 1].rstrip() + "…"
