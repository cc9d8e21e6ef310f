from kdpl.report.accuracy import disagreements
from kdpl.runtime.predictions import ImagePrediction


def test_disagreements_are_sorted_by_who_is_correct():
    def pair(label, teacher, student):
        return tuple(
            ImagePrediction(0, "x.png", "one", "name", 0.5, label, number)
            for number in (teacher, student)
        )

    pairs = [pair(0, 0, 0), pair(0, 0, 1), pair(0, 1, 0), pair(0, 1, 2), pair(0, 1, 1)]
    assert disagreements(pairs) == ([pairs[1]], [pairs[2]], [pairs[3]])
