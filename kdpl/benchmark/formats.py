"""A campaign's tables as Markdown, CSV and LaTeX."""

import re
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import pandas as pd

from kdpl.benchmark.table import Table

_CSV_COLUMNS = ["protocol", "setting", "dataset", "row", "title", "metric", "mean", "standard_deviation", "seeds"]
_CSV_COLUMNS += ["seeds_expected", "published", "difference", "transductive", "selected_on_test"]
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def markdown(tables: Sequence[Table]) -> str:
    """Write one Markdown table for each table, with its title above it where there are several."""
    parts = []
    for table in tables:
        lines, notes = _lines(table, escape_markdown, "**{}**")
        rows = markdown_rows(lines, len(table.columns))
        title = [f"### {escape_markdown(table.title)}", ""] if len(tables) > 1 else []
        parts.append("\n".join([*title, *rows, *(line for note in notes for line in ("", note)), ""]))
    return "\n".join(parts)


def markdown_rows(lines: Sequence[Sequence[str]], numbers: int) -> list[str]:
    """Return the lines of a Markdown table, head first; the last columns have numbers, which end at the right."""
    rows = ["|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines]
    rows.insert(1, "|" + "---|" * (len(lines[0]) - numbers) + "--:|" * numbers)
    return rows


def to_csv(tables: Sequence[Table]) -> str:
    """Write one row for each cell of all tables, in %; what is missing is empty."""
    cells = pd.concat([table.cells for table in tables])
    cells["title"] = cells["title"].str.strip("*")
    for flag in ("transductive", "selected_on_test"):
        cells[flag] = cells[flag].map({True: "true", False: "false"})
    text: str = cells[_CSV_COLUMNS].to_csv(index=False, float_format="%.4f", lineterminator="\n")
    return text


def latex(tables: Sequence[Table]) -> str:
    """Write one tabular for each table, with the rules of the package booktabs; rules separate the datasets."""
    parts = ["% \\usepackage{booktabs}"]
    for table in tables:
        (head, *lines), notes = _lines(table, _latex_text, r"\textbf{{{}}}")
        rows, labels = [r"\toprule", " & ".join(head) + r" \\"], len(head) - len(table.columns)
        # by what stands before the title
        for _, group in groupby(lines, itemgetter(slice(labels - 1))):
            rows += [r"\midrule", *(" & ".join(line) + r" \\" for line in group)]
        begin = rf"\begin{{tabular}}{{{'l' * labels}{'r' * len(table.columns)}}}"
        end = [r"\bottomrule", r"\end{tabular}"]
        rows = [f"% {_latex_text(table.title)}", begin, *rows, *end, *(rf"\par {note}" for note in notes)]
        parts.append("\n".join([*rows, ""]))
    return "\n".join(parts)


FORMATS: dict[str, tuple[str, Callable[[Sequence[Table]], str]]] = {
    "markdown": ("md", markdown),
    "csv": ("csv", to_csv),
    "latex": ("tex", latex),
}
"""Each format's file name ending, and what writes it."""


def _lines(table: Table, escape: Callable[[str], str], bold: str) -> tuple[list[list[str]], list[str]]:
    """Return the texts of the head and of each line, and the notes below the table."""
    cells = table.cells
    grouped, with_published = cells["group"].any(), cells["published"].notna().any()
    lines = [[""] * (2 if grouped else 1) + [escape(title) for title in table.columns]]
    for start in range(0, len(cells), len(table.columns)):
        line = cells.iloc[start : start + len(table.columns)]
        first = line.iloc[0]
        plain = first["title"].strip("*")
        title = bold.format(escape(plain)) if first["title"] == f"**{plain}**" else escape(first["title"])
        marks = ("†" if first["transductive"] else "") + ("‡" if first["selected_on_test"] else "")
        group = [escape(first["group"])] if grouped else []
        # what is published has two decimals
        texts = [escape(_cell(cell, 2 if with_published else 1)) for cell in line.itertuples()]
        lines.append([*group, f"{title} {escape(marks)}".strip(), *texts])
    notes = {
        "† transductive: unlabelled images of the novel classes were seen in distillation": "transductive",
        "‡ the epoch was chosen by the accuracy on the base classes' test images": "selected_on_test",
    }
    shown = [escape(note) for note, flag in notes.items() if cells[flag].any()]
    brackets = escape("in brackets the published figure, and how far the mean is above it")
    return lines, [*shown, *([brackets] if with_published else [])]


def _cell(cell: Any, digits: int) -> str:
    """Write mean ± standard deviation, published figure and difference, or what is missing."""
    if cell.seeds_expected == 0:
        return "" if pd.isna(cell.published) else f"{cell.published:.{digits}f}"
    seeds = f"{cell.seeds} of {cell.seeds_expected} seed{'s' if cell.seeds_expected > 1 else ''}"
    if cell.seeds == 0:
        text = f"missing ({seeds})"
    else:
        # what has no seed, as an untuned CLIP, has no deviation
        spread = f" ± {cell.standard_deviation:.{digits}f}" if cell.standard_deviation > 0 else ""
        text = f"{cell.mean:.{digits}f}{spread}" + (f" ({seeds})" if cell.seeds < cell.seeds_expected else "")
    if pd.isna(cell.published):
        return text
    difference = "" if pd.isna(cell.difference) else f", {cell.difference:+.{digits}f}".replace("-", "−")
    return f"{text} [{cell.published:.{digits}f}{difference}]"


def escape_markdown(text: str) -> str:
    """Escape what Markdown would take for its own signs."""
    # brackets only where they would make a link
    return re.sub(r"([\\`*_|<>#~])|(\[)(?=[^\]]*\]\()", r"\\\1\2", text)


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
