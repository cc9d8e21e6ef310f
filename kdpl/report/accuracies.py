"""Accuracies of teacher, student and both CLIPs as they came, with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

from kdpl.errors import ArtifactError, KdplError
from kdpl.report.charts import IntervalChart, interval_chart
from kdpl.report.run_folder import Run, Stage
from kdpl.report.statistics import Interval, bootstrap_difference, bootstrap_harmonic_mean, wilson
from kdpl.runtime.predictions import Answer

COLUMNS = {"acc": "all classes", "base_acc": "base classes", "novel_acc": "novel classes", "hm": "harmonic mean"}

_TITLES = {
    "teacher_clip": "teacher's CLIP, zero-shot",
    "teacher": "teacher, tuned",
    "student_clip": "student's CLIP, zero-shot",
    "student": "student, distilled",
}


@dataclass(frozen=True)
class Accuracy:
    """An accuracy.

    Attributes:
        value: The share of images that are right.
        interval: Its 95 % confidence interval.
    """

    value: float
    interval: Interval


@dataclass(frozen=True)
class AccuracyRow:
    """The accuracies of one model.

    Attributes:
        key: Which model.
        title: The same for people.
        values: By key of ``COLUMNS``; those that were measured.
    """

    key: str
    title: str
    values: dict[str, Accuracy]


@dataclass(frozen=True)
class Accuracies:
    """All accuracies of a run.

    Attributes:
        columns: Titles by key, of those that there are.
        rows: The models that were tested.
        images: Number of test images.
        gaps: Sentences on what is not there.
        chart: The accuracies over all classes.
        difference: How much higher the student's accuracy is than the teacher's; None without both.
    """

    columns: dict[str, str]
    rows: list[AccuracyRow]
    images: int
    gaps: list[str]
    chart: IntervalChart
    difference: Accuracy | None


def accuracies(run: Run) -> Accuracies:
    """Read and count.

    Raises:
        ArtifactError: Nothing was tested.
    """
    rows, gaps, images = [], [], 0
    for key, title in _TITLES.items():
        stage: Stage | None = getattr(run, key)
        if stage is None:
            gaps.append(f"{title}: not part of {run.folder}")
            continue
        try:
            rows.append(AccuracyRow(key, title, _values(stage, _base_names(run))))
            images = len(stage.answers)
        except KdplError as error:
            gaps.append(f"{title}: {error}")
    if not rows:
        raise ArtifactError(f"nothing of {run.folder} was tested: {'; '.join(gaps)}")
    columns = {key: title for key, title in COLUMNS.items() if any(key in row.values for row in rows)}
    chart = interval_chart([(row.title, row.values["acc"].value, *row.values["acc"].interval) for row in rows])
    return Accuracies(columns, rows, images, gaps, chart, _difference(run))


def _base_names(run: Run) -> frozenset[str]:
    try:
        return frozenset(run.vectors.class_names[: run.vectors.num_base or 0])
    except KdplError:
        return frozenset()  # base and novel accuracies are then left without intervals, and so left out


def _values(stage: Stage, base_names: frozenset[str]) -> dict[str, Accuracy]:
    results, answers = stage.results, stage.answers
    counts = _counts(answers, base_names)
    values = {}
    for key, images in counts.items():
        share = results.get(f"test/{key}")
        if share is not None and images and not isnan(share):
            values[key] = Accuracy(share, wilson(round(share * images), images))
    if "base_acc" in values and "novel_acc" in values and "test/hm" in results:
        pair = [(round(values[key].value * counts[key]), counts[key]) for key in ("base_acc", "novel_acc")]
        values["hm"] = Accuracy(results["test/hm"], bootstrap_harmonic_mean(pair[0], pair[1]))
    return values


def _counts(answers: Sequence[Answer], base_names: frozenset[str]) -> dict[str, int]:
    base = sum(a.label in base_names for a in answers)
    return {"acc": len(answers)} | ({"base_acc": base, "novel_acc": len(answers) - base} if base_names else {})


def _difference(run: Run) -> Accuracy | None:
    try:
        pairs = run.answers_side_by_side
    except KdplError:
        return None
    if run.teacher is None or run.student is None or not pairs:
        return None
    teacher, student = run.teacher.right, run.student.right
    return Accuracy(float(student.mean() - teacher.mean()), bootstrap_difference(teacher, student))
