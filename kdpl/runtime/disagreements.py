"""Test images on which teacher and student give different answers."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from kdpl.runtime.predictions import Answer

Pair = tuple[Answer, Answer]
"""The teacher's answer and the student's on one image."""

T = TypeVar("T")


class Disagreements(NamedTuple):
    """Pairs of different answers, by who is right.

    Attributes:
        only_teacher: The teacher alone is right.
        only_student: The student alone is right.
        neither: Both are wrong, in different ways.
    """

    only_teacher: list[Pair]
    only_student: list[Pair]
    neither: list[Pair]

    def some(self, count: int) -> list[Pair]:
        """Choose at most so many, evenly over the three kinds and over the test images."""
        return [pair for kind in self for pair in spread(kind, count // len(self))]


def find_disagreements(pairs: Iterable[Pair]) -> Disagreements:
    """Sort the pairs whose answers differ by who is right."""
    found = Disagreements([], [], [])
    for teacher, student in pairs:
        if teacher.prediction != student.prediction:
            right = (teacher.prediction == teacher.label, student.prediction == student.label)
            found[0 if right[0] else 1 if right[1] else 2].append((teacher, student))
    return found


def spread(items: Sequence[T], count: int) -> list[T]:
    """Choose at most so many items, evenly."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]
