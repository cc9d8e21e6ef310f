"""Tables in Markdown."""

import re
from collections.abc import Sequence


def markdown_rows(lines: Sequence[Sequence[str]], numbers: int) -> list[str]:
    """Return the lines of a Markdown table, head first.

    The last columns, as many as ``numbers``, are numbers and aligned to the right.
    """
    rows = ["|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines]
    rows.insert(1, "|" + "---|" * (len(lines[0]) - numbers) + "--:|" * numbers)
    return rows


def escape_markdown(text: str) -> str:
    """Escape what Markdown would take for its own signs."""
    # brackets only where they would make a link
    return re.sub(r"([\\`*_|<>#~])|(\[)(?=[^\]]*\]\()", r"\\\1\2", text)
