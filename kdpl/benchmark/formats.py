"""A campaign's tables as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter

from kdpl.benchmark.table import Cell, ResultTable
from kdpl.runtime.markdown import escape_markdown, markdown_rows

_CSV_COLUMNS = [
    "protocol",
    "setting",
    "dataset",
    "row",
    "title",
    "metric",
    "mean",
    "standard_deviation",
    "seeds",
]
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


def markdown(tables: Sequence[ResultTable]) -> str:
    """Write one Markdown table for each table, with its title above it where there are several."""
    parts = []
    for table in tables:
        lines, notes = _lines(table, escape_markdown, "**{}**")
        rows = markdown_rows(lines, len(table.columns))
        title = [f"### {escape_markdown(table.title)}", ""] if len(tables) > 1 else []
        parts.append(
            "\n".join([*title, *rows, *(line for note in notes for line in ("", note)), ""])
        )
    return "\n".join(parts)


def to_csv(tables: Sequence[ResultTable]) -> str:
    """Write one row for each cell of all tables, in %; what is missing is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for line in (line for table in tables for line in table.lines):
        flags = [str(flag).lower() for flag in (line.transductive, line.selected_on_test)]
        for cell in line.cells:
            column, figures = (
                cell.column,
                (cell.mean, cell.standard_deviation, cell.published, cell.difference),
            )
            mean, deviation, *more = (
                "" if figure is None else f"{figure:.4f}" for figure in figures
            )
            place = (
                column.protocol,
                column.setting,
                cell.dataset,
                cell.row,
                line.title.strip("*"),
                column.metric,
            )
            writer.writerow(
                [*place, mean, deviation, cell.seeds, cell.seeds_expected, *more, *flags]
            )
    return text.getvalue()


def latex(tables: Sequence[ResultTable]) -> str:
    """Write one tabular for each table, with the rules of the package booktabs.

    Rules separate the datasets.
    """
    parts = ["% \\usepackage{booktabs}"]
    for table in tables:
        (head, *lines), notes = _lines(table, _latex_text, r"\textbf{{{}}}")
        rows, labels = [r"\toprule", " & ".join(head) + r" \\"], len(head) - len(table.columns)
        # by what stands before the title
        for _, group in groupby(lines, itemgetter(slice(labels - 1))):
            rows += [r"\midrule", *(" & ".join(line) + r" \\" for line in group)]
        begin = rf"\begin{{tabular}}{{{'l' * labels}{'r' * len(table.columns)}}}"
        end = [r"\bottomrule", r"\end{tabular}"]
        rows = [
            f"% {_latex_text(table.title)}",
            begin,
            *rows,
            *end,
            *(rf"\par {note}" for note in notes),
        ]
        parts.append("\n".join([*rows, ""]))
    return "\n".join(parts)


WRITERS: dict[str, tuple[str, Callable[[Sequence[ResultTable]], str]]] = {
    "markdown": ("md", markdown),
    "csv": ("csv", to_csv),
    "latex": ("tex", latex),
}
"""Each format's file name ending, and what writes it."""


def _lines(
    table: ResultTable, escape: Callable[[str], str], bold: str
) -> tuple[list[list[str]], list[str]]:
    """Return the texts of the head and of each line, and the notes below the table."""
    cells = [cell for line in table.lines for cell in line.cells]
    grouped, with_published = (
        any(line.group for line in table.lines),
        any(cell.published is not None for cell in cells),
    )
    lines = [[""] * (2 if grouped else 1) + [escape(title) for title in table.columns]]
    for line in table.lines:
        plain = line.title.strip("*")
        title = bold.format(escape(plain)) if line.title == f"**{plain}**" else escape(line.title)
        marks = ("†" if line.transductive else "") + ("‡" if line.selected_on_test else "")
        group = [escape(line.group)] if grouped else []
        # what is published has two decimals
        texts = [escape(_text(cell, 2 if with_published else 1)) for cell in line.cells]
        lines.append([*group, f"{title} {escape(marks)}".strip(), *texts])
    notes = {
        "† transductive: unlabelled images of the novel classes were seen in "
        "distillation": "transductive",
        "‡ the epoch was chosen by the accuracy on the base classes' test "
        "images": "selected_on_test",
    }
    shown = [
        escape(note)
        for note, flag in notes.items()
        if any(getattr(line, flag) for line in table.lines)
    ]
    brackets = escape("in brackets the published figure, and how far the mean is above it")
    return lines, [*shown, *([brackets] if with_published else []), *map(escape, table.notes)]


def _text(cell: Cell, digits: int) -> str:
    """Write mean ± standard deviation, published figure and difference, or what is missing."""
    published = "" if cell.published is None else f"{cell.published:.{digits}f}"
    if cell.seeds_expected == 0:
        return published
    seeds = f"{cell.seeds} of {cell.seeds_expected} seed{'s' if cell.seeds_expected > 1 else ''}"
    if cell.mean is None:
        text = f"missing ({seeds})"
    else:
        # what has no seed, as an untuned CLIP, has no deviation
        spread = f" ± {cell.standard_deviation:.{digits}f}" if cell.standard_deviation else ""
        text = f"{cell.mean:.{digits}f}{spread}" + (
            f" ({seeds})" if cell.seeds < cell.seeds_expected else ""
        )
    difference = (
        "" if cell.difference is None else f", {cell.difference:+.{digits}f}".replace("-", "−")
    )
    return f"{text} [{published}{difference}]" if published else text


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
