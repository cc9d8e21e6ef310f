"""Images for which the predictions of teacher and student differ."""

from collections.abc import Iterable, Sequence

from kdpl.runtime.predictions import ImagePrediction, spread

MAX_EXAMPLES = 30
"""Largest number of images that are shown of those on which teacher and student disagree."""

Pair = tuple[ImagePrediction, ImagePrediction]
"""Predictions of teacher and student for one image."""


def disagreements(pairs: Iterable[Pair]) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Sort the pairs whose predictions differ.

    The lists are: only the teacher is correct, only the student is, neither is.
    """
    kinds: tuple[list[Pair], list[Pair], list[Pair]] = [], [], []
    only_teacher, only_student, neither = kinds
    for teacher, student in pairs:
        if teacher.prediction_number != student.prediction_number:
            kind = only_teacher if teacher.correct else only_student if student.correct else neither
            kind.append((teacher, student))
    return kinds


def choose_examples(kinds: Sequence[Sequence[Pair]]) -> list[Pair]:
    """Choose at most ``MAX_EXAMPLES`` disagreements.

    They are spread evenly over who is correct and over the test images.
    """
    return [pair for kind in kinds for pair in spread(kind, MAX_EXAMPLES // len(kinds))]
