"""``python -m kdpl report RUN``: the report of a run."""

from dataclasses import replace
from pathlib import Path

from kdpl.cli.arguments import output_file
from kdpl.runtime.files import write_text
from kdpl.runtime.run_folder import REPORT_FILE


def report(run: str, *, out: str | None = None, trust: bool = False) -> int:
    """Write report.html: what was trained and how well, in one file that needs no other.

    Args:
        run: the --out of run, or of a stage's fit
        out: file to write, instead of report.html in RUN
        trust: import any class that the configs name, for a run that you trust
    """
    folder = Path(run)
    path = output_file("--out", out) if out is not None else folder / REPORT_FILE

    from kdpl.report.page import render
    from kdpl.report.run_folder import Run
    from kdpl.runtime.messages import inform, quiet_libraries

    quiet_libraries()
    opened = replace(Run.find(folder, trust), read_only=out is not None)
    inform("making the report: loading and timing both encoders")
    html = render(opened)
    write_text(path, html)
    print(f"report: {path}")
    return 0
