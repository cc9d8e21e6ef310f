"""Report section on refined targets: use, class counts before and after, moved images."""

from pathlib import Path
from typing import Any

from kdpl.data.identity import digest_of
from kdpl.data.sampling import spread
from kdpl.errors import DataError, KdplError
from kdpl.report.accuracy import thumbnail
from kdpl.report.page import Section
from kdpl.report.run_folder import Run
from kdpl.targets.refinement.pool_targets import POOL_TARGETS_FILE, PoolTargets

MAX_MOVED = 24
"""Largest number of shown images that moved to another class."""


def refined_targets(run: Run) -> dict[str, Any] | None:
    """Collect what refinement changed in the student's targets; None for other targets."""
    if run.student is None or not (file := run.student.folder / POOL_TARGETS_FILE).is_file():
        return None
    if run.student.settings("model").get("target", "teacher") == "teacher":
        return None  # the file is of another start in this folder
    targets = PoolTargets.load(file)
    shown, gap = [], None
    # examples, if the images are still there
    try:
        data = run.data
        if digest_of(data.pool.images) != targets.made_from["images"]:
            raise DataError(
                f"{data.splits.origin} has other unlabelled images than were refined: restore it"
            )
        for image, before, after in spread(targets.examples, MAX_MOVED):
            small = thumbnail(data.splits.open_image(data.pool.images[image]))
            names = {"before": targets.class_names[before], "after": targets.class_names[after]}
            shown.append({**names, "index": image, **small})
    except (KdplError, OSError, IndexError) as error:
        gap = str(error)
    # the classes that changed most first
    rows = list(zip(targets.class_names, targets.before, targets.after, strict=True))
    rows.sort(key=lambda row: (-abs(row[2] - row[1]), row[0]))
    return {
        "targets": targets,
        "rows": rows,
        "most": max(1, *targets.before, *targets.after),
        "shown": shown,
        "gap": gap,
    }


SECTION = Section(
    "Refined targets",
    refined_targets,
    Path(__file__).parent / "templates" / "refined.html.jinja",
    "training",
)
