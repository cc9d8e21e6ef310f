"""Where the predictions of teacher and student differ."""

from collections.abc import Iterable

from kdpl.runtime.predictions import ImagePrediction

Pair = tuple[ImagePrediction, ImagePrediction]
"""Predictions of teacher and student for one image."""


def disagreements(pairs: Iterable[Pair]) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Sort the pairs whose predictions differ: only the teacher is correct, only the student is, neither is."""
    only_teacher, only_student, neither = found = ([], [], [])  # type: tuple[list[Pair], list[Pair], list[Pair]]
    for teacher, student in pairs:
        if teacher.prediction_number != student.prediction_number:
            kind = only_teacher if teacher.correct else only_student if student.correct else neither
            kind.append((teacher, student))
    return found
