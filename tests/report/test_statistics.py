import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from kdpl.confidence.held_out import TEMPERATURES, fit_temperature
from kdpl.confidence.report import diagram
from kdpl.report.intervals import wilson


def test_wilsons_interval_is_the_published_one():
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)


def test_the_calibration_error_is_that_of_torchmetrics():
    draw = np.random.default_rng(5)
    confidences = draw.random(500)
    correct = draw.random(500) < confidences**2
    given = torch.from_numpy(confidences), torch.from_numpy(correct)
    expected = float(binary_calibration_error(*given, n_bins=15))
    assert diagram("", confidences, correct)["error"] == pytest.approx(expected, abs=1e-6)


def test_bins_include_their_upper_bound_and_exclude_their_lower_one():
    edges = np.linspace(0, 1, 16)
    confidences = np.append(edges[1:], edges[9] + 1e-9)
    bins = diagram("", confidences, np.ones(16, dtype=bool))["bins"]
    assert [b["images"] for b in bins] == [2 if i == 9 else 1 for i in range(15)]


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_temperature_maximises_the_likelihood(factor):
    draw = np.random.default_rng(6)
    logits = 2 * draw.standard_normal((20000, 6))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (p.cumsum(axis=1) < draw.random((20000, 1))).sum(axis=1)
    temperature = fit_temperature(factor * logits, labels)
    # the one that the labels were drawn at
    assert temperature == pytest.approx(factor, rel=0.03)
    given, labels = torch.from_numpy(factor * logits), torch.from_numpy(labels)
    losses = [
        torch.nn.functional.cross_entropy(given / (change * temperature), labels)
        for change in (1, 0.999, 1.001)
    ]
    assert losses[0] == min(losses)


def test_without_a_best_temperature_it_is_a_bound():
    logits = np.array([[5.0, 1.0, 0.0], [0.0, 4.0, 1.0]])
    assert fit_temperature(logits, np.array([0, 1])) == TEMPERATURES[0]
    assert fit_temperature(logits, np.array([2, 0])) == TEMPERATURES[1]
