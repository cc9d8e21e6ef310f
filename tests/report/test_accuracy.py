from dataclasses import replace

import pytest

from kdpl.report.accuracy import class_rows, confusion_matrix, largest_confusions
from kdpl.runtime.predictions import ImagePrediction

NAMES = ("a", "b", "c", "unseen")
LABELS = "aaaabbbcc"


def predictions(predicted):
    return [
        ImagePrediction(i, f"{i}.png", y, p, 0.5, ord(y) - ord("a"), ord(p) - ord("a"))
        for i, (y, p) in enumerate(zip(LABELS, predicted, strict=True))
    ]


TEACHER, STUDENT = predictions("aaaabbbca"), predictions("aabcbbacc")


def test_rows_start_with_the_students_largest_losses_or_the_only_models_worst_class():
    rows = class_rows(NAMES, TEACHER, STUDENT)
    assert [tuple(r) for r in rows] == [
        (0, "a", 4, 1.0, 0.5),
        (1, "b", 3, 1.0, pytest.approx(2 / 3)),
        (2, "c", 2, 0.5, 1.0),
    ]
    assert [r.difference for r in rows] == pytest.approx([-0.5, -1 / 3, 0.5])
    worst = class_rows(NAMES, TEACHER, None)[0]
    assert (worst.name, worst.teacher, worst.student, worst.difference) == ("c", 0.5, None, None)
    assert [r.name for r in class_rows(NAMES, None, STUDENT)] == ["a", "b", "c"]


def test_the_matrix_has_true_classes_as_rows_and_the_largest_confusions_come_first():
    assert confusion_matrix(NAMES, STUDENT) == [[2, 1, 1, 0], [1, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]]
    assert largest_confusions(NAMES, predictions("abbcbbacc"), 2) == [("a", "b", 2, 0.5), ("a", "c", 1, 0.25)]


def test_two_classes_of_one_name_are_not_correct_for_each_other():
    twins = [replace(p, label="a", prediction="a") for p in predictions("abbcbbacc")]
    assert [p.correct for p in twins] == [p.correct for p in predictions("abbcbbacc")]
    names = ("a", "a", "a", "unseen")
    assert confusion_matrix(names, twins) == confusion_matrix(NAMES, predictions("abbcbbacc"))
    assert [r[1:] for r in class_rows(names, None, twins)] == [
        ("a", 4, None, 0.25),
        ("a", 3, None, 2 / 3),
        ("a", 2, None, 1.0),
    ]
