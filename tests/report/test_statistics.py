import math

import numpy as np
import pytest

from kdpl.report.statistics import (
    TEMPERATURES,
    bootstrap_difference,
    bootstrap_harmonic_mean,
    calibration_error,
    fit_temperature,
    reliability,
    wilson,
)


@pytest.mark.parametrize(
    ("right", "images", "interval"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilsons_interval_is_the_published_one(right, images, interval):
    assert wilson(right, images) == pytest.approx(interval, abs=5e-5)


def test_wilsons_interval_is_where_the_score_test_turns():
    for right, images in [(846, 899), (3, 10), (10, 10)]:
        for bound in wilson(right, images):
            if 0 < bound < 1:
                z = (right / images - bound) / math.sqrt(bound * (1 - bound) / images)
                assert abs(z) == pytest.approx(1.959964, abs=1e-5)


def test_the_interval_of_a_difference_is_that_of_drawing_pairs_again():
    draw = np.random.default_rng(3)
    teacher = draw.random(300) < 0.8
    student = np.where(draw.random(300) < 0.9, teacher, draw.random(300) < 0.5)
    plain = []
    for _ in range(4000):
        chosen = draw.integers(0, 300, 300)
        plain.append(student[chosen].mean() - teacher[chosen].mean())
    expected = np.quantile(plain, [0.025, 0.975])
    assert bootstrap_difference(teacher, student) == pytest.approx(expected, abs=0.006)
    assert bootstrap_difference(teacher, teacher) == (0, 0)


def test_the_interval_of_a_harmonic_mean_is_that_of_drawing_images_again():
    draw = np.random.default_rng(4)
    base, novel = np.arange(200) < 180, np.arange(150) < 90
    plain = []
    for _ in range(4000):
        b, n = (x[draw.integers(0, len(x), len(x))].mean() for x in (base, novel))
        plain.append(2 * b * n / (b + n))
    expected = np.quantile(plain, [0.025, 0.975])
    assert bootstrap_harmonic_mean((180, 200), (90, 150)) == pytest.approx(expected, abs=0.006)
    assert bootstrap_harmonic_mean((0, 20), (0, 30)) == (0, 0)


def test_the_calibration_error_is_the_mean_distance_within_bins():
    # two answers in (0.6, 0.667], one of them right, and one that is sure and wrong
    confidences, right = np.array([0.61, 0.65, 1.0]), np.array([True, False, False])
    bins = reliability(confidences, right)
    assert [(i, b.images) for i, b in enumerate(bins) if b.images] == [(9, 2), (14, 1)]
    assert bins[9].accuracy == 0.5
    assert bins[9].confidence == pytest.approx(0.63)
    assert calibration_error(bins) == pytest.approx((2 * 0.13 + 1.0) / 3)


def test_bins_hold_their_upper_bound_and_not_their_lower_one():
    edges = np.linspace(0, 1, 16)
    bins = reliability(np.append(edges[1:], edges[9] + 1e-9), np.ones(16, dtype=bool))
    assert [b.images for b in bins] == [2 if i == 9 else 1 for i in range(15)]


def test_the_calibration_error_is_that_of_a_plain_loop():
    draw = np.random.default_rng(5)
    confidences = draw.random(500)
    right = draw.random(500) < confidences**2
    total = 0.0
    for i in range(15):
        inside = [(c, r) for c, r in zip(confidences, right, strict=True) if i / 15 < c <= (i + 1) / 15]
        if inside:
            accuracy = sum(r for _, r in inside) / len(inside)
            total += len(inside) / 500 * abs(accuracy - sum(c for c, _ in inside) / len(inside))
    assert calibration_error(reliability(confidences, right)) == pytest.approx(total)


def likelihood(logits, labels, temperature):
    z = logits / temperature
    z = z - z.max(axis=1, keepdims=True)
    return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_is_that_under_which_the_labels_were_drawn(factor):
    draw = np.random.default_rng(6)
    logits = 2 * draw.standard_normal((20000, 6))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([draw.choice(6, p=row) for row in p])
    found = fit_temperature(factor * logits, labels)
    assert found == pytest.approx(factor, rel=0.03)
    grid = factor * np.linspace(0.9, 1.1, 201)
    best = grid[np.argmin([likelihood(factor * logits, labels, t) for t in grid])]
    assert found == pytest.approx(best, abs=0.0011 * factor)


def test_where_no_temperature_is_best_it_is_a_bound():
    logits = np.array([[5.0, 1.0, 0.0], [0.0, 4.0, 1.0]])
    assert fit_temperature(logits, np.array([0, 1])) == TEMPERATURES[0]
    assert fit_temperature(logits, np.array([2, 0])) == TEMPERATURES[1]
