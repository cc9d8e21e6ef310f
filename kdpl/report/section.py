"""What a section of the report is; rooms bring theirs by the entry points ``kdpl.report``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from kdpl.report.run_folder import Run


class Section(NamedTuple):
    """A section of the report.

    Attributes:
        title: Its heading.
        make: Collects its data from a run; a KdplError becomes a sentence that says why there is none.
        template: Its part of the page, which takes the data as ``data``.
        after: Name of the section that it follows.
        wide: Whether it takes the whole width.
    """

    title: str
    make: Callable[[Run], Any]
    template: Path
    after: str
    wide: bool = True
