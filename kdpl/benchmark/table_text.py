"""Tables of a campaign as Markdown and CSV."""

import csv
import io
from collections.abc import Sequence

from kdpl.benchmark.table import Cell, ResultTable
from kdpl.runtime.markdown import escape_markdown, markdown_rows

_COLUMNS = ["protocol", "setting", "dataset", "row", "title", "metric", "mean"]
_COLUMNS += ["standard_deviation", "seeds", "seeds_expected", "published", "difference"]
_COLUMNS += ["transductive", "selected_on_test"]


def markdown(tables: Sequence[ResultTable]) -> str:
    """Format tables as Markdown, with their titles if there are several."""
    parts = []
    for table in tables:
        title = [f"### {escape_markdown(table.title)}", ""] if len(tables) > 1 else []
        notes = [line for note in _notes(table) for line in ("", escape_markdown(note))]
        parts.append("\n".join([*title, *_rows(table), *notes, ""]))
    return "\n".join(parts)


def to_csv(tables: Sequence[ResultTable]) -> str:
    """Format the cells of all tables as CSV rows, in %; missing values are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for line in (line for table in tables for line in table.lines):
        title, marks = line.title.strip("*"), (line.transductive, line.selected_on_test)
        for cell in line.cells:
            column, seeds = cell.column, (cell.seeds, cell.seeds_expected)
            keys = (column.protocol, column.setting, cell.dataset, cell.row, title, column.metric)
            measured, shown = (
                (cell.mean, cell.standard_deviation),
                (cell.published, cell.difference),
            )
            values = (*keys, *measured, *seeds, *shown, *(str(mark).lower() for mark in marks))
            writer.writerow(f"{v:.4f}" if isinstance(v, float) else v for v in values)
    return text.getvalue()


def _rows(table: ResultTable) -> list[str]:
    grouped = any(line.group for line in table.lines)
    lines = [[*[""] * (1 + grouped), *map(escape_markdown, table.columns)]]
    for line in table.lines:
        plain = line.title.strip("*")
        title = escape_markdown(plain)
        if line.title == f"**{plain}**":
            title = f"**{title}**"
        marks = "†" * line.transductive + "‡" * line.selected_on_test
        # published figures have two decimals
        digits = 2 if _has_published(table) else 1
        texts = [escape_markdown(_text(cell, digits)) for cell in line.cells]
        group = [escape_markdown(line.group)] if grouped else []
        lines.append([*group, f"{title} {marks}".strip(), *texts])
    return markdown_rows(lines, len(table.columns))


def _notes(table: ResultTable) -> list[str]:
    notes = list[str]()
    if any(line.transductive for line in table.lines):
        seen = "unlabelled images of the novel classes were seen in distillation"
        notes.append(f"† transductive: {seen}")
    if any(line.selected_on_test for line in table.lines):
        notes.append("‡ the epoch was chosen by the accuracy on the base classes' test images")
    if _has_published(table):
        notes.append("in brackets the published figure, and how far the mean is above it")
    return [*notes, *table.notes]


def _has_published(table: ResultTable) -> bool:
    return any(cell.published is not None for line in table.lines for cell in line.cells)


def _text(cell: Cell, digits: int) -> str:
    """Format mean ± standard deviation, published figure and difference, or what is missing."""
    published = "" if cell.published is None else f"{cell.published:.{digits}f}"
    if cell.seeds_expected == 0:
        return published
    seeds = f"{cell.seeds} of {cell.seeds_expected} seed{'s' if cell.seeds_expected > 1 else ''}"
    if cell.mean is None:
        text = f"missing ({seeds})"
    else:
        # an untuned CLIP has no deviation, since no seed changes it
        spread = f" ± {cell.standard_deviation:.{digits}f}" if cell.standard_deviation else ""
        text = f"{cell.mean:.{digits}f}{spread}" + (
            f" ({seeds})" if cell.seeds < cell.seeds_expected else ""
        )
    difference = (
        "" if cell.difference is None else f", {cell.difference:+.{digits}f}".replace("-", "−")
    )
    return f"{text} [{published}{difference}]" if published else text
