"""The report's section on several labels: an entry point of ``kdpl.report``."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpl.errors import ArtifactError, KdplError, reason
from kdpl.metrics import MULTILABEL_COLUMNS, test_key
from kdpl.multilabel.callback import PER_CLASS_FILE
from kdpl.multilabel.report.probe import linear_probe
from kdpl.multilabel.task import SEPARATOR, MultiLabel
from kdpl.report.accuracy import thumbnail
from kdpl.report.page import Section
from kdpl.report.run_folder import Run
from kdpl.runtime.predictions import read_results, spread
from kdpl.runtime.run_folder import PREDICTIONS_FILE

METRICS = {name: MULTILABEL_COLUMNS[name] for name in ("map", "macro_f1", "micro_f1")}

_DRAWS, _SHOWN, _MATRIX_CLASSES = 500, 12, 40
_MODELS = {"teacher_clip": "teacher's original CLIP", "student_clip": "student's original CLIP"}
_STAGES = {"teacher": "teacher", "student": "distilled student"}
_PROBES = {
    "teacher": "linear probe of the teacher's CLIP",
    "student": "linear probe of the student's network",
}


def several_labels(run: Run) -> dict[str, Any]:
    """Collect scores of all tested models and probes, and classes and images of the last one."""
    tested, gaps = dict[str, list[float]](), list[str]()
    for key, title in (_MODELS | _STAGES).items():
        stage = getattr(run, key)
        results = {} if stage is None else read_results(stage.folder)
        if test_key("map") in results:
            tested[title] = [results[test_key(name)] for name in METRICS]
    for role, title in _PROBES.items():
        try:
            if role in run.stages:
                tested[title] = [linear_probe(run, role)]
        except KdplError as error:
            gaps.append(f"{title}: {error}")
    if (chance := read_results(run.main.folder).get(test_key("chance"))) is not None:
        tested["chance"] = [chance]

    folder = run.main.folder
    try:
        rows, classes = (_read(folder / name) for name in (PREDICTIONS_FILE, PER_CLASS_FILE))
        names = [row["class"] for row in classes]
        known, predicted = (_sets(rows, names, column) for column in ("labels", "predicted"))
        numbers = [[float(p) for p in row["probabilities"].split(SEPARATOR)] for row in rows]
        intervals = [
            average_precision_interval(scores, has)
            for scores, has in zip(np.array(numbers).T, known.T, strict=True)
        ]
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"the test of {folder} is missing or damaged ({reason(error)}): run it again"
        ) from error

    return {
        "models": tested,
        "below": below_probes(_probed_precisions(run, tested)),
        "gaps": gaps,
        "metrics": METRICS.values(),
        "images": len(rows),
        "classes": list(zip(classes, intervals, strict=True)),
        "names": names if len(names) <= _MATRIX_CLASSES else None,
        # of the images that have the class of the row, those that are said to have the column's
        "together": (known.T.astype(float) @ predicted).astype(int).tolist(),
        "having": known.sum(axis=0).tolist(),
        "shown": _examples(run, spread(rows, _SHOWN)),
    }


def _probed_precisions(run: Run, tested: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the test mAP of student and probes, of the classes that a probe knows."""
    found = {title: tested[title][0] for title in _PROBES.values() if title in tested}
    if run.student is not None:
        results = read_results(run.student.folder)
        key = test_key("map" if run.vectors.num_base is None else "base_map")
        found |= {_STAGES["student"]: results[key]} if key in results else {}
    return found


def below_probes(precisions: Mapping[str, float]) -> str | None:
    """Say in one sentence that the student's test mAP, by title, is below that of a probe."""
    student = precisions.get(_STAGES["student"], 1.0)
    better = [
        f"the {title} ({100 * precisions[title]:.1f} %)"
        for title in _PROBES.values()
        if precisions.get(title, 0.0) > student
    ]
    if not better:
        return None
    return (
        f"The student's mAP is {100 * student:.1f} %, less than with the same labels "
        f"{' and '.join(better)}: label more images, or see docs/several_labels.md."
    )


def average_precision_interval(
    scores: npt.NDArray[np.float64], has: npt.NDArray[np.bool_]
) -> tuple[float, float] | None:
    """Return the 95 % interval of a class's average precision, by bootstrap over images.

    Scores and labels are of N images. None if no image has the class; draws without one have no
    average precision and are left out.
    """
    if not has.any():
        return None
    order = np.argsort(-scores, kind="stable")
    drawn = np.random.default_rng(0).multinomial(len(has), [1 / len(has)] * len(has), _DRAWS)
    weights, own = drawn[:, order], has[order]
    hits = (weights * own).cumsum(axis=1)
    precisions = hits / weights.cumsum(axis=1).clip(min=1)
    positives = hits[:, -1]
    found = (precisions * weights * own).sum(axis=1)[positives > 0] / positives[positives > 0]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def _read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _sets(rows: list[dict[str, str]], names: list[str], column: str) -> npt.NDArray[np.bool_]:
    return np.array([[name in row[column].split(SEPARATOR) for name in names] for row in rows])


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
