"""New images against a sample of the pool, and what ``benchmarks/watch.py`` measures with, by plain loops."""

import math
import statistics

import numpy as np
import pytest
import torch

from benchmarks import watch
from kdpl.confidence.drift import two_samples
from kdpl.confidence.drift.image_sample import ImageSample
from kdpl.confidence.drift.two_samples import Comparison, above_usual, compare, distances_to

CLASSES = 4


def draw(count, seed, shift=0.0, width=3, unsure=0.0, rare=1.0):
    """Images of random features, scores and classes, of which ``shift`` moves the features of a class away."""
    numbers = np.random.default_rng(seed)
    labels = numbers.choice(CLASSES, count, p=np.array([rare, 1, 1, 1]) / (3 + rare))
    features = numbers.normal(size=(count, width)) + shift * (labels == 1)[:, None]
    scores = numbers.random(count) * (1 - unsure)
    columns = features.astype(np.float16), scores.astype(np.float32), labels
    return ImageSample(*map(torch.from_numpy, columns))


def plain_statistics(pool, new, threshold):
    """The three statistics and each class's difference, of two lists of (features, score, class)."""
    if threshold is None:
        threshold = np.quantile([score for _, score, _ in pool], 0.05)
    rejected = sum(score < threshold for _, score, _ in new)
    angles = []
    for part in (pool, new):
        counts = [sum(label == c for *_, label in part) for c in range(CLASSES)]
        angles.append([math.asin(math.sqrt((n + 3 / 8) / (len(part) + 3 / 4))) for n in counts])
    differences = [abs(a - b) for a, b in zip(*angles, strict=True)]
    far = [min(math.dist(x, y) for y, *_ in pool) for x, *_ in new]
    within = [
        min(math.dist(x, y) for j, (y, *_) in enumerate(pool) if i != j)
        for i, (x, *_) in enumerate(pool)
    ]
    difference = sum(far) / len(far) - sum(within) / len(within)
    return [rejected, sum(d**2 for d in differences), difference], differences


def plain_comparison(pool, new, threshold, permutations):
    images = [
        [*zip(*(column.tolist() for column in vars(sample).values()), strict=True)]
        for sample in (pool, new)
    ]
    everything, numbers = images[0] + images[1], np.random.default_rng(0)
    given, rows = [False] * len(pool) + [True] * len(new), []
    for number in range(permutations + 1):
        is_new = numbers.permutation(given) if number else given
        parts = [
            [x for x, there in zip(everything, is_new, strict=True) if there == which]
            for which in (False, True)
        ]
        rows.append(plain_statistics(*parts, threshold))
    close = 1e-9
    p_values = [
        [sum(r[0][k] >= row[0][k] - close for r in rows) / len(rows) for k in range(3)]
        for row in rows
    ]
    adjusted = [sum(min(row) <= p + 1e-12 for row in p_values) / len(rows) for p in p_values[0]]
    return adjusted, [sum(max(r[1]) >= d - close for r in rows) / len(rows) for d in rows[0][1]]


@pytest.mark.parametrize(
    ("changes", "near", "threshold"),
    [
        ({}, 32, 0.3),
        ({"shift": 3.0}, 1, 0.3),
        ({"unsure": 0.3, "rare": 5.0}, 2, 0.3),
        ({"unsure": 0.9}, 3, None),
    ],
    ids=["same", "far", "other", "unsure"],
)
def test_p_values_are_those_of_a_plain_implementation(changes, near, threshold, monkeypatch):
    monkeypatch.setattr(two_samples, "PERMUTATIONS", 80)
    monkeypatch.setattr(two_samples, "_NEAR", near)
    pool, new = draw(17, seed=1), draw(12, seed=2, **changes)
    comparison = compare(pool, new, CLASSES, threshold)
    questions, classes = plain_comparison(pool, new, threshold, 80)
    assert [*comparison.questions] == ["rejected", "classes", "distance"]
    assert [*comparison.questions.values()] == pytest.approx(questions)
    assert comparison.classes == pytest.approx(classes)


def test_distances_are_those_to_the_nearest_image_of_the_pool():
    pool, new = draw(40, seed=1).features, draw(1100, seed=2).features
    expected = [min(math.dist(x, y) for y in pool) for x in new[-50:]]
    assert distances_to(pool, new)[-50:].tolist() == pytest.approx(expected)
    assert len(distances_to(pool, new)) == 1100


@pytest.mark.parametrize("sizes", [(60, 20), (25, 50)])
def test_of_images_like_the_pool_as_many_differ_as_is_asked(sizes, monkeypatch):
    monkeypatch.setattr(two_samples, "PERMUTATIONS", 49)
    smallest, classes = [], []
    for seed in range(100):
        pool, new = (draw(count, seed=(seed, count), rare=0.2) for count in sizes)
        comparison = compare(pool, new, CLASSES)
        smallest.append(min(comparison.questions.values()))
        classes.append(min(comparison.classes))
    for rate in (0.1, 0.3, 0.5):
        above = 3 * math.sqrt(rate * (1 - rate) / 100)
        assert np.mean(np.array(smallest) <= rate) == pytest.approx(rate, abs=above)
        # of few images many differences are equal
        assert np.mean(np.array(classes) <= rate) <= rate + above


@pytest.mark.parametrize(
    ("changes", "question"),
    [({"unsure": 0.9}, "rejected"), ({"rare": 12.0}, "classes"), ({"shift": 8.0}, "distance")],
)
def test_each_question_sees_its_own_difference(changes, question):
    pool, new = draw(200, seed=1), draw(60, seed=2, **changes)
    comparison = compare(pool, new, CLASSES, 0.05)
    assert comparison.questions[question] < 0.005
    assert all(p_value > 0.05 for name, p_value in comparison.questions.items() if name != question)
    assert (comparison.classes[0] < 0.01) == (question == "classes")


@pytest.mark.parametrize(("references", "rank"), [(40, 39), (19, 19), (7, 7)])
def test_a_number_above_the_usual_score_is_as_probable_as_it_is_by_counting(references, rank):
    def arrangements(above):
        return math.comb(12 - above + rank - 1, rank - 1) * math.comb(
            above + references - rank, references - rank
        )

    for least in range(13):
        expected = sum(map(arrangements, range(least, 13))) / math.comb(references + 12, references)
        assert above_usual(least, 12, references) == pytest.approx(expected)


def test_a_question_of_other_images_takes_its_share_of_the_false_alarms():
    one = Comparison({"rejected": 0.006, "classes": 0.3, "distance": 0.9}, [0.1])
    one = one.with_unknown(0.004)
    expected = {"rejected": 0.008, "classes": 0.4, "distance": 1.0, "unknown": 0.016}
    assert one.questions == pytest.approx(expected)
    assert one.classes == [0.1]


@pytest.mark.parametrize("shift", [0, 1])
def test_the_energy_distance_is_that_of_a_plain_loop(shift, monkeypatch):
    monkeypatch.setattr("kdpl.confidence.drift.two_samples.PERMUTATIONS", 40)
    pool, new = draw(9, seed=1), draw(7, seed=2, shift=shift)
    everything = [*pool.features.double().tolist(), *new.features.double().tolist()]
    numbers, given, energies = np.random.default_rng(0), [False] * 9 + [True] * 7, []

    def mean(one, other):
        return statistics.mean(math.dist(x, y) for x in one for y in other)

    for number in range(41):
        is_new = numbers.permutation(given) if number else given
        x, y = (
            [row for row, there in zip(everything, is_new, strict=True) if there == side]
            for side in (True, False)
        )
        energies.append(2 * mean(x, y) - mean(x, x) - mean(y, y))
    p_value = np.mean(np.array(energies) >= energies[0] - 1e-9)
    assert watch.energy(pool, new) == pytest.approx(p_value)
