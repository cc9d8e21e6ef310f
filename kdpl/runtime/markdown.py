"""Tables in Markdown."""

import re
from collections.abc import Sequence


def markdown_rows(lines: Sequence[Sequence[str]], numbers: int) -> list[str]:
    """Return a Markdown table, head first; the last ``numbers`` columns are aligned right."""
    rows = ["|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines]
    rows.insert(1, "|" + "---|" * (len(lines[0]) - numbers) + "--:|" * numbers)
    return rows


def escape_markdown(text: str) -> str:
    """Escape characters that have a meaning in Markdown."""
    # brackets only where they would form a link
    return re.sub(r"([\\`*_|<>#~])|(\[)(?=[^\]]*\]\()", r"\\\1\2", text)
