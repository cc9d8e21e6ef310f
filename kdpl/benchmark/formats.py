"""A campaign's tables as Markdown, CSV and LaTeX."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

from kdpl.benchmark.table import SELECTED_ON_TEST, TRANSDUCTIVE, Cell, Line, Table

Format = Literal["markdown", "csv", "latex"]
FORMATS: tuple[Format, ...] = get_args(Format)
ENDINGS: dict[Format, str] = {"markdown": "md", "csv": "csv", "latex": "tex"}

_PUBLISHED = "in brackets the published figure, and how far the mean is above it"
_CSV_COLUMNS = (
    "protocol",
    "setting",
    "dataset",
    "row",
    "title",
    "metric",
    "mean",
    "standard_deviation",
    "seeds",
    "seeds_expected",
    "published",
    "difference",
    "transductive",
    "selected_on_test",
)
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


def render(tables: Sequence[Table], form: Format) -> str:
    """Write tables in a format, ending with a line break."""
    return {"markdown": markdown, "csv": to_csv, "latex": latex}[form](tables)


def markdown(tables: Sequence[Table]) -> str:
    """Write one Markdown table for each table, with its title above it where there are several."""
    parts = []
    for table in tables:
        labels = 2 if table.grouped else 1
        rows = [_markdown_row([*[""] * labels, *map(_markdown_text, table.columns)])]
        rows.append("|" + "---|" * labels + "--:|" * len(table.columns))
        for line in table.lines:
            group = [_markdown_text(line.group)] if table.grouped else []
            cells = [_markdown_text(_cell(cell, table)) for cell in line.cells]
            rows.append(_markdown_row([*group, _title(line, _markdown_text, "**{}**".format), *cells]))
        title = [f"### {_markdown_text(table.title)}", ""] if len(tables) > 1 else []
        notes = [part for note in _notes(table) for part in ("", _markdown_text(note))]
        parts.append("\n".join([*title, *rows, *notes, ""]))
    return "\n".join(parts)


def _markdown_row(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def to_csv(tables: Sequence[Table]) -> str:
    """Write one row for each cell of all tables, in %; what is missing is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    lines = [line for table in tables for line in table.lines]
    for line, cell in [(each, cell) for each in lines for cell in each.cells]:
        numbers = (cell.mean, cell.deviation if len(cell.values) > 1 else None)
        writer.writerow(
            [
                *(cell.protocol, cell.setting, cell.dataset, cell.row, line.title.strip("*"), cell.metric),
                *(_number(number) for number in numbers),
                *(len(cell.values), cell.expected),
                *(_number(number) for number in (cell.published, cell.difference)),
                *(str(flag).lower() for flag in (line.transductive, line.selected_on_test)),
            ]
        )
    return text.getvalue()


def latex(tables: Sequence[Table]) -> str:
    """Write one tabular for each table, with the rules of the package booktabs."""
    parts = ["% \\usepackage{booktabs}"]
    for table in tables:
        labels = 2 if table.grouped else 1
        head = [*[""] * labels, *map(_latex_text, table.columns)]
        lines = [
            f"% {_latex_text(table.title)}",
            rf"\begin{{tabular}}{{{'l' * labels}{'r' * len(table.columns)}}}",
            r"\toprule",
        ]
        lines += [" & ".join(head) + r" \\", r"\midrule"]
        before = table.lines[0].group if table.lines else ""
        for line in table.lines:
            if line.group != before:
                lines.append(r"\midrule")
            group = [_latex_text(line.group)] if table.grouped else []
            cells = [_latex_text(_cell(cell, table)) for cell in line.cells]
            lines.append(" & ".join([*group, _title(line, _latex_text, r"\textbf{{{}}}".format), *cells]) + r" \\")
            before = line.group
        lines += [r"\bottomrule", r"\end{tabular}", *(rf"\par {_latex_text(note)}" for note in _notes(table)), ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _cell(cell: Cell, table: Table) -> str:
    """Write mean ± standard deviation, published figure and difference, or what is missing."""
    # what is published has two decimals
    digits = 2 if table.with_published else 1
    if cell.expected == 0:
        return f"{cell.published:.{digits}f}"
    seeds = f"{len(cell.values)} of {cell.expected} seed{'s' if cell.expected > 1 else ''}"
    if cell.mean is None:
        text = f"missing ({seeds})"
    else:
        # what has no seed, an untuned CLIP, has no spread
        text = f"{cell.mean:.{digits}f}" + (f" ± {cell.deviation:.{digits}f}" if cell.deviation else "")
        text += f" ({seeds})" if len(cell.values) < cell.expected else ""
    if cell.published is None:
        return text
    difference = f", {cell.difference:+.{digits}f}".replace("-", "−") if cell.difference is not None else ""
    return f"{text} [{cell.published:.{digits}f}{difference}]"


def _title(line: Line, escape: Callable[[str], str], bold: Callable[[str], str]) -> str:
    plain = line.title.strip("*")
    is_bold = line.title == f"**{plain}**"
    text = bold(escape(plain)) if is_bold else escape(line.title)
    marks = [mark for mark, set_ in (("†", line.transductive), ("‡", line.selected_on_test)) if set_]
    return " ".join([text, escape("".join(marks))]) if marks else text


def _notes(table: Table) -> Iterable[str]:
    """Give what stands below a table."""
    if any(line.transductive for line in table.lines):
        yield f"† {TRANSDUCTIVE}"
    if any(line.selected_on_test for line in table.lines):
        yield f"‡ {SELECTED_ON_TEST}"
    if table.with_published:
        yield _PUBLISHED


def _number(number: float | None) -> str:
    return "" if number is None else f"{number:.4f}"


def _markdown_text(text: str) -> str:
    # brackets only where they would make a link
    return re.sub(r"([\\`*_|<>#~])|(\[)(?=[^\]]*\]\()", r"\\\1\2", text)


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
