"""The report's section on several labels: an entry point of ``kdpl.report``."""

import csv
from pathlib import Path
from typing import Any

from kdpl.errors import ArtifactError, KdplError, reason
from kdpl.metrics import MULTILABEL_COLUMNS, test_key
from kdpl.multilabel.callback import PER_CLASS_FILE
from kdpl.multilabel.task import SEPARATOR, MultiLabel
from kdpl.report.accuracy import thumbnail
from kdpl.report.page import Section
from kdpl.report.run_folder import Run
from kdpl.runtime.predictions import read_results, spread
from kdpl.runtime.run_folder import PREDICTIONS_FILE

METRICS = {name: MULTILABEL_COLUMNS[name] for name in ("map", "macro_f1", "micro_f1")}

_SHOWN = 12
_MODELS = {
    "teacher_clip": "teacher's original CLIP",
    "student_clip": "student's original CLIP",
    "teacher": "teacher",
    "student": "distilled student",
}


def several_labels(run: Run) -> dict[str, Any]:
    """Collect scores of all tested models, and classes and images of the last one."""
    tested = {}
    for key, title in _MODELS.items():
        stage = getattr(run, key)
        results = {} if stage is None else read_results(stage.folder)
        if test_key("map") in results:
            tested[title] = [results[test_key(name)] for name in METRICS]

    folder = run.main.folder
    try:
        rows, classes = (_read(folder / name) for name in (PREDICTIONS_FILE, PER_CLASS_FILE))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"the test of {folder} is missing or damaged ({reason(error)}): run it again"
        ) from error
    return {
        "models": tested,
        "metrics": METRICS.values(),
        "images": len(rows),
        "classes": classes,
        "shown": _examples(run, spread(rows, _SHOWN)),
    }


def _read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _examples(run: Run, rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Images with the labels that they have, and those that are predicted; none if unreadable."""
    examples = []
    try:
        for row in rows:
            known, predicted = (
                [name for name in row[column].split(SEPARATOR) if name]
                for column in ("labels", "predicted")
            )
            said = [(name, name in known) for name in predicted]
            missing = [name for name in known if name not in predicted]
            image = thumbnail(run.data.splits.open_image(row["source"]))
            examples.append({"said": said, "missing": missing, **image})
    except KdplError:
        return []
    return examples


SECTION = Section(
    "Several labels",
    several_labels,
    Path(__file__).parent / "templates" / "several.html.jinja",
    "accuracy",
    task=MultiLabel.name,
)
