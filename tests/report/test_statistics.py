import numpy as np
import pytest
import torch
from resampling import bootstrap_difference, bootstrap_harmonic_mean
from torchmetrics.functional.classification import binary_calibration_error

from kdpl.confidence.held_out import TEMPERATURES, fit_temperature
from kdpl.confidence.report.calibration import calibration_error, reliability
from kdpl.report.intervals import wilson


@pytest.mark.parametrize(
    ("correct", "images", "interval"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilsons_interval_is_the_published_one(correct, images, interval):
    assert wilson(correct, images) == pytest.approx(interval, abs=5e-5)


def test_the_tests_interval_of_a_difference_is_that_of_resampling_pairs():
    draw = np.random.default_rng(3)
    teacher = draw.random(300) < 0.8
    student = np.where(draw.random(300) < 0.9, teacher, draw.random(300) < 0.5)
    chosen = draw.integers(0, 300, (4000, 300))
    expected = np.quantile(
        student[chosen].mean(axis=1) - teacher[chosen].mean(axis=1), [0.025, 0.975]
    )
    assert bootstrap_difference(teacher, student) == pytest.approx(expected, abs=0.006)
    assert bootstrap_difference(teacher, teacher) == (0, 0)


def test_the_tests_interval_of_a_harmonic_mean_is_that_of_resampling_images():
    draw = np.random.default_rng(4)
    b, n = (
        (np.arange(images) < correct)[draw.integers(0, images, (4000, images))].mean(axis=1)
        for correct, images in ((180, 200), (90, 150))
    )
    expected = np.quantile(2 * b * n / (b + n), [0.025, 0.975])
    assert bootstrap_harmonic_mean((180, 200), (90, 150)) == pytest.approx(expected, abs=0.006)
    assert bootstrap_harmonic_mean((0, 20), (0, 30)) == (0, 0)


def test_the_calibration_error_is_that_of_torchmetrics():
    draw = np.random.default_rng(5)
    confidences = draw.random(500)
    correct = draw.random(500) < confidences**2
    expected = binary_calibration_error(
        torch.from_numpy(confidences), torch.from_numpy(correct), n_bins=15
    )
    assert calibration_error(reliability(confidences, correct)) == pytest.approx(
        float(expected), abs=1e-6
    )


def test_bins_include_their_upper_bound_and_exclude_their_lower_one():
    edges = np.linspace(0, 1, 16)
    bins = reliability(np.append(edges[1:], edges[9] + 1e-9), np.ones(16, dtype=bool))
    assert [b.images for b in bins] == [2 if i == 9 else 1 for i in range(15)]


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_temperature_maximises_the_likelihood(factor):
    draw = np.random.default_rng(6)
    logits = 2 * draw.standard_normal((20000, 6))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (p.cumsum(axis=1) < draw.random((20000, 1))).sum(axis=1)
    found = fit_temperature(factor * logits, labels)
    assert found == pytest.approx(factor, rel=0.03)  # the temperature that the labels were drawn at
    losses = [
        torch.nn.functional.cross_entropy(
            torch.from_numpy(factor * logits / t), torch.from_numpy(labels)
        )
        for t in (found, 0.999 * found, 1.001 * found)
    ]
    assert losses[0] == min(losses)


def test_without_a_best_temperature_it_is_a_bound():
    logits = np.array([[5.0, 1.0, 0.0], [0.0, 4.0, 1.0]])
    assert fit_temperature(logits, np.array([0, 1])) == TEMPERATURES[0]
    assert fit_temperature(logits, np.array([2, 0])) == TEMPERATURES[1]
