"""``python -m kdpl compare RUN RUN…``: test accuracies of runs, and their differences."""

from collections.abc import Callable
from typing import Any, Literal

from kdpl.cli.arguments import output_file
from kdpl.errors import ConfigError, visible
from kdpl.runtime.files import write_text


def compare(
    runs: list[str],
    *,
    out: str | None = None,
    baselines: Literal["all", "zero-shot", "none"] = "all",
    trust: bool = False,
) -> int:
    """Compare the test accuracies of runs with the first run, on the same test images.

    A difference is called higher or lower if its 95 % interval excludes 0.

    Args:
        runs: the --out of run, or of a stage's fit; NAME=RUN,RUN,… are runs that differ only in the
            seed, compared by their means; a pattern, as in 'NAME=runs/few_*', stands for several
        out: Markdown file to write the table to as well
        baselines: rows for the original CLIPs of teacher and student, zero-shot and with a linear
            probe
        trust: import any class that the configs name, for runs that you trust
    """
    path = output_file("--out", out) if out is not None else None
    if path is not None and path.suffix != ".md":
        raise ConfigError(f"--out {path} has an unknown ending, expected .md: give another")

    from kdpl.report.compare import compare_runs
    from kdpl.runtime.markdown import escape_markdown
    from kdpl.runtime.messages import quiet_libraries

    quiet_libraries()
    records, notes = compare_runs(runs, baselines, trust)
    print("\n".join(map(visible, [*_lines(records), "", *notes])))
    if path is not None:
        lines = _lines(records, escape_markdown)
        write_text(path, "\n".join([*lines, *(f"\n{escape_markdown(note)}" for note in notes), ""]))
        print(f"table: {path}")
    return 0


def _lines(records: list[dict[str, Any]], escape: Callable[[str], str] = str) -> list[str]:
    """Lay out records as a Markdown table with aligned columns."""
    from kdpl.runtime.markdown import markdown_rows

    lines = [["classes", "", "accuracy", f"difference to {records[0]['row']}", ""]]
    for record in records:
        seeds = f" ({record['seeds']} seeds)" if record["seeds"] > 1 else ""
        accuracy = "{accuracy:.1f} [{accuracy_low:.1f}, {accuracy_high:.1f}]".format_map(record)
        figures = "{difference:+.1f} [{difference_low:+.1f}, {difference_high:+.1f}]"
        difference = "" if record["difference"] is None else figures.format_map(record)
        name, difference = record["row"] + seeds, difference.replace("-", "−")
        lines.append([record["classes"], name, accuracy, difference, record["verdict"]])
    # the column of classes is left out where all rows have the same
    labels = 1 if len({record["classes"] for record in records}) == 1 else 2
    cells = [[escape(text) for text in line[2 - labels :]] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    formats = [f"{'<' if i < labels else '>'}{width}" for i, width in enumerate(widths)]
    return markdown_rows([[*map(format, line, formats)] for line in cells], 3)
