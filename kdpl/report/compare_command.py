"""``python -m kdpl compare RUN RUN…``: test accuracies of runs, and their differences."""

import csv
import json
from collections.abc import Callable
from io import StringIO
from typing import Any, Literal

from kdpl.cli.arguments import output_file
from kdpl.errors import ConfigError, visible
from kdpl.runtime.files import write_text

_ENDINGS = (".md", ".csv", ".json")


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
        out: file to write the table to as well, .md, .csv or .json
        baselines: rows for the original CLIPs of teacher and student, zero-shot and with a linear
            probe
        trust: import any class that the configs name, for runs that you trust
    """
    path = output_file("--out", out) if out is not None else None
    if path is not None and path.suffix not in _ENDINGS:
        raise ConfigError(
            f"--out {path} has an unknown ending, expected one of "
            f"{', '.join(_ENDINGS)}: give another"
        )

    from kdpl.report import compare as comparison
    from kdpl.runtime.messages import quiet_libraries

    quiet_libraries()
    # a row for each group of runs, then the baselines
    groups = comparison.find_groups(runs, trust)
    rows = [comparison.run_row(name, group) for name, group in groups.items()]
    images = rows[0].scores["acc"].shape[1]
    over = "images and seeds" if any(len(row.seeds) > 1 for row in rows) else "images"
    notes = [
        f"accuracy in % on {images} test images, with 95 % intervals, paired for differences, "
        f"over {over}"
    ]
    if any("novel_acc" in row.scores for row in rows):
        notes.append("transductive: unlabelled images of novel classes were seen in distillation")
    if baselines != "none":
        added_rows, added_notes = comparison.baselines(groups, with_probes=baselines == "all")
        rows, notes = rows + added_rows, notes + added_notes
    records = comparison.compared(rows)
    print("\n".join(map(visible, [*_lines(records), "", *notes])))
    if path is not None:
        write_text(path, _text(path.suffix, records, notes))
        print(f"table: {path}")
    return 0


def _text(ending: str, records: list[dict[str, Any]], notes: list[str]) -> str:
    if ending == ".md":
        from kdpl.runtime.markdown import escape_markdown

        lines = _lines(records, escape_markdown)
        return "\n".join([*lines, *(f"\n{escape_markdown(note)}" for note in notes), ""])
    if ending == ".json":
        return json.dumps({"rows": records, "notes": notes}, indent=2, ensure_ascii=False) + "\n"
    file = StringIO()
    table = csv.DictWriter(file, records[0], lineterminator="\n")
    table.writeheader()
    table.writerows(records)
    return file.getvalue()


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
