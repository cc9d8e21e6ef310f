"""Accuracies of teacher, student and their original CLIPs, by model and by class.

Confusions and disagreements are here as well.
"""

import base64
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from PIL.Image import Image

from kdpl.errors import ArtifactError, KdplError
from kdpl.metrics import ACCURACY_TITLES
from kdpl.report.charts import interval_chart
from kdpl.report.intervals import Accuracy, accuracy_of, paired_difference, scores_of
from kdpl.report.pairs import choose_examples, disagreements
from kdpl.report.probes import Probe, linear_probe
from kdpl.report.run_folder import Run, Stage
from kdpl.runtime.predictions import ImagePrediction

MATRIX_CLASSES = 20
"""Largest number of classes with a confusion matrix, which could not be read beyond."""

_EDGE = 112
_TITLES = {
    "teacher_clip": "teacher's original CLIP (zero-shot)",
    "teacher": "tuned teacher",
    "second_teacher": "second teacher",
    "student_clip": "student's original CLIP (zero-shot)",
    "student": "distilled student",
    "teacher_probe": "linear probe of the teacher's CLIP",
    "student_probe": "linear probe of the student's network",
}


class ModelRow(NamedTuple):
    """The accuracies of one model that were measured, by key of ``ACCURACY_TITLES``."""

    key: str
    title: str
    values: dict[str, Accuracy]


def accuracies(run: Run) -> dict[str, Any]:
    """Collect the accuracies of all tested models; raises an ArtifactError if there are none."""
    rows: list[ModelRow] = []
    gaps, images = [], 0
    main = "teacher" if run.student is None else "student"
    titles = {**_TITLES, "teacher": _TITLES["teacher_clip"]} if run.untuned else {**_TITLES}
    for key, title in titles.items():
        role, _, kind = key.partition("_")
        if kind == "probe" and not (role in run.stages and main in {row.key for row in rows}):
            continue
        stage: Stage | None = None if kind == "probe" else getattr(run, key)
        if (key == "teacher_clip" and run.untuned) or (key == "second_teacher" and stage is None):
            continue
        if stage is None and kind != "probe":
            gaps.append(f"{title}: not part of {run.folder}")
            continue
        try:
            test = stage or linear_probe(run, role)
            rows.append(ModelRow(key, title, _values(run, test)))
            images = max(images, len(test.predictions))
        except KdplError as error:
            gaps.append(f"{title}: {error}")
    if not rows:
        raise ArtifactError(f"nothing of {run.folder} was tested: {'; '.join(gaps)}")
    over_all = [row for row in rows if "acc" in row.values]
    return {
        "columns": {
            k: title for k, title in ACCURACY_TITLES.items() if any(k in row.values for row in rows)
        },
        "rows": rows,
        "images": images,
        "gaps": gaps,
        "chart": interval_chart(
            [(r.title, r.values["acc"].value, *r.values["acc"].interval) for r in over_all]
        ),
        "difference": _difference(run),
        "below": below_probes(rows),
    }


def below_probes(rows: Sequence[ModelRow]) -> str | None:
    """Say in one sentence that the student is less accurate than a linear probe, and what to do."""
    found = {row.key: row.values for row in rows}
    student, better, own = found.get("student", {}), [], ""
    for role, network in {"student": "its own network", "teacher": "the teacher's CLIP"}.items():
        for key, probe in found.get(f"{role}_probe", {}).items():
            if key in student and student[key].value < probe.value:
                better.append(f"of {network} ({100 * probe.value:.1f} %)")
                images = "test images of the base classes" if key == "base_acc" else "test images"
                own = f"{100 * student[key].value:.1f} % of the {images}"
    if not better:
        return None
    return (
        f"The student classifies {own} correctly, less than logistic regression with the same "
        f"labels on the frozen features {' and '.join(better)}: add --student refined, or let "
        "python -m kdpl search choose what of it is trained (docs/targets.md)."
    )


def _values(run: Run, test: Stage | Probe) -> dict[str, Accuracy]:
    scores = test.scores if isinstance(test, Probe) else scores_of(run, test)
    return {key: accuracy_of(key, each[None]) for key, each in scores.items()}


def _difference(run: Run) -> Accuracy | None:
    try:
        pairs = run.pairs
    except KdplError:
        return None
    teacher, student = np.array([[t.correct, s.correct] for t, s in pairs], float).T
    return paired_difference(teacher[None], student[None])


class ClassRow(NamedTuple):
    """Label, name and number of test images of a class, and the share correct by model."""

    number: int
    name: str
    images: int
    teacher: float | None
    student: float | None

    @property
    def difference(self) -> float | None:
        """The student's share minus the teacher's."""
        return None if self.teacher is None or self.student is None else self.student - self.teacher


def classes(run: Run) -> dict[str, Any]:
    """Collect accuracies by class; the gap says why the teacher's are missing."""
    names, own = run.vectors.class_names, run.main.predictions
    if run.student is None:
        return {"rows": class_rows(names, own, None), "gap": None}
    try:
        return {"rows": class_rows(names, [teacher for teacher, _ in run.pairs], own), "gap": None}
    except KdplError as error:
        return {"rows": class_rows(names, None, own), "gap": str(error)}


def class_rows(
    names: Sequence[str],
    teacher: Sequence[ImagePrediction] | None,
    student: Sequence[ImagePrediction] | None,
) -> list[ClassRow]:
    """Count by class, the student's largest losses first.

    None stands for a model that was not tested.
    """
    images = Counter(p.label_number for p in student or teacher or ())

    def share(predictions: Sequence[ImagePrediction] | None) -> dict[int, float]:
        correct = Counter(p.label_number for p in predictions or () if p.correct)
        return {} if predictions is None else {i: correct[i] / images[i] for i in images}

    of_teacher, of_student = share(teacher), share(student)
    numbered = [(i, name) for i, name in enumerate(names) if images[i]]
    rows = [
        ClassRow(i, name, images[i], of_teacher.get(i), of_student.get(i)) for i, name in numbered
    ]
    return sorted(
        rows, key=lambda r: next(x for x in (r.difference, r.student, r.teacher) if x is not None)
    )


def confusions(run: Run) -> dict[str, Any]:
    """Collect the confusion matrix of a few classes, and the largest confusions of any number."""
    names, predictions = run.vectors.class_names, run.main.predictions
    readable = len(names) <= MATRIX_CLASSES
    return {
        "who": "student" if run.student is not None else "teacher",
        "names": names,
        "matrix": confusion_matrix(names, predictions) if readable else None,
        # a longer list where there is no matrix
        "largest": largest_confusions(names, predictions, 10 if readable else 40),
        "wrong": sum(not p.correct for p in predictions),
    }


def confusion_matrix(
    names: Sequence[str], predictions: Sequence[ImagePrediction]
) -> list[list[int]]:
    """Count images by true class (rows) and predicted class (columns)."""
    counts = Counter((p.label_number, p.prediction_number) for p in predictions)
    return [
        [counts[label, prediction] for prediction in range(len(names))]
        for label in range(len(names))
    ]


def largest_confusions(
    names: Sequence[str], predictions: Sequence[ImagePrediction], count: int
) -> list[tuple[str, str, int, float]]:
    """List at most ``count`` pairs of classes.

    Each has the true class, predicted class, images, and share of the true class's images.
    """
    images = Counter(p.label_number for p in predictions)
    wrong = Counter((p.label_number, p.prediction_number) for p in predictions if not p.correct)
    rows = [
        (names[label], names[prediction], n, n / images[label])
        for (label, prediction), n in wrong.items()
    ]
    # ties by name, so that the order is always the same
    return sorted(rows, key=lambda row: (-row[2], row))[:count]


def find_examples(run: Run) -> dict[str, Any]:
    """Count disagreements, and show examples as thumbnails."""
    kinds = disagreements(run.pairs)
    shown, gap = [], None
    try:
        read = run.tested_data().test_item
        for teacher, student in choose_examples(kinds):
            shown.append(
                {"teacher": teacher, "student": student, **thumbnail(read(student.index)[1])}
            )
    except (KdplError, OSError) as error:
        gap = str(error)
    only_teacher, only_student, neither = map(len, kinds)
    return {
        "disagreements": only_teacher + only_student + neither,
        "images": len(run.pairs),
        "only_teacher": only_teacher,
        "only_student": only_student,
        "neither": neither,
        "shown": shown,
        "gap": gap,
    }


def thumbnail(image: Image, edge: int = _EDGE) -> dict[str, Any]:
    """Return a data URI of an image, with width and height in pixels.

    It is at most ``edge`` pixels wide and high.
    """
    small = image.convert("RGB")
    small.thumbnail((edge, edge))
    buffer = BytesIO()
    small.save(buffer, "webp", quality=80)
    uri = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"uri": uri, "width": small.width, "height": small.height}
