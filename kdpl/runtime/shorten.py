"""Names of any kind, made fit to be shown."""

import unicodedata


def shorten(name: str, length: int = 60) -> str:
    """Make a name of any kind fit into a line: one line, no control characters, visibly cut where it is long."""
    line = " ".join(name[: 10 * length].split())
    shown = "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c).startswith("C") else c for c in line)
    return shown if len(shown) <= length and len(name) <= 10 * length else shown[: length - 1].rstrip() + "…"
