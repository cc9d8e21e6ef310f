"""A section of the report, of what the companion keeps."""

import json
from pathlib import Path

from kdpl.report.page import Section
from kdpl.report.run_folder import Run
from shapes.parts import Seen, Smoothed


def collect(run: Run) -> dict[str, int] | None:
    """Return the section's data; None for a run that has none."""
    if run.student is None or not (file := run.student.folder / "classifier" / Seen.file).exists():
        return None
    return json.loads(file.read_text(encoding="utf-8"))


SECTION = Section(
    "Drawings",
    collect,
    Path(__file__).with_name("drawings.html.jinja"),
    after="training",
    task=Smoothed.name,
)
