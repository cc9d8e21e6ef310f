"""Accuracies by class, and which classes are taken for which."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kdpl.runtime.predictions import Answer

MATRIX_CLASSES = 20
"""Up to how many classes a confusion matrix can be read."""


@dataclass(frozen=True)
class ClassRow:
    """A class's test images.

    Attributes:
        number: Its label.
        name: The class.
        images: How many.
        teacher: Share that the teacher answers rightly; None where it was not tested.
        student: The same of the student.
    """

    number: int
    name: str
    images: int
    teacher: float | None
    student: float | None

    @property
    def difference(self) -> float | None:
        """How much higher the student's share is."""
        return None if self.teacher is None or self.student is None else self.student - self.teacher


@dataclass(frozen=True)
class Confusion:
    """Images of one class that were taken for another.

    Attributes:
        label: The class that they are of.
        prediction: The class that was answered.
        images: How many.
        share: Of the class's images.
    """

    label: str
    prediction: str
    images: int
    share: float


def class_rows(
    names: Sequence[str], teacher: Sequence[Answer] | None, student: Sequence[Answer] | None
) -> list[ClassRow]:
    """Count by class; what the student lost most comes first, and classes without test images are left out.

    Args:
        names: The classes, by label.
        teacher: The teacher's answers, if it was tested.
        student: The student's answers, on the same images.
    """
    images = Counter(a.label for a in student or teacher or ())
    right = [Counter(a.label for a in answers or () if a.label == a.prediction) for answers in (teacher, student)]
    rows = []
    for number, name in enumerate(names):
        if not images[name]:
            continue
        shares = [
            right[i][name] / images[name] if answers is not None else None
            for i, answers in enumerate((teacher, student))
        ]
        rows.append(ClassRow(number, name, images[name], *shares))

    def loss(row: ClassRow) -> float:
        if row.difference is not None:
            return row.difference
        return row.student if row.student is not None else row.teacher or 0.0

    return sorted(rows, key=loss)


def confusion_matrix(names: Sequence[str], answers: Sequence[Answer]) -> list[list[int]]:
    """Count the answers: a row for each true class, a column for each answered one."""
    counts = Counter((a.label, a.prediction) for a in answers)
    return [[counts[label, prediction] for prediction in names] for label in names]


def largest_confusions(answers: Sequence[Answer], count: int) -> list[Confusion]:
    """List which classes are taken for which most often, ``count`` pairs at most."""
    images = Counter(a.label for a in answers)
    wrong = Counter((a.label, a.prediction) for a in answers if a.label != a.prediction)
    # ties by name, so that the same answers give the same list
    ordered = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:count]
    return [Confusion(label, answer, n, n / images[label]) for (label, answer), n in ordered]
