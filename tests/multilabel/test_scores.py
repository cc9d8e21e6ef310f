"""Scale and bias of each class."""

import math

import pytest
import torch

from kdpl.multilabel.scores import ScaleAndBias

DRAW = torch.Generator().manual_seed(0)
LOGITS = 20 + 3 * torch.randn(60, 3, generator=DRAW)


def test_scores_begin_a_standard_deviation_above_the_mean_of_each_class():
    scores = ScaleAndBias(3, 2)
    scores.start_at(LOGITS)
    expected = LOGITS - LOGITS.mean(0) - LOGITS.std(0, correction=0)
    assert torch.allclose(scores(LOGITS), expected, atol=1e-4)
    assert torch.allclose(scores.centered(LOGITS[:, :2]), expected[:, :2], atol=1e-4)


def test_classes_that_are_not_learned_have_the_mean_of_those_that_are():
    scores = ScaleAndBias(3, 2)
    scores.start_at(LOGITS)
    with torch.no_grad():
        scores.log_scale.copy_(torch.tensor([0.2, 0.4]))
        scores.bias.copy_(torch.tensor([1.0, -2.0]))
    moved = (LOGITS - scores.center)[:, 2]
    expected = math.exp(0.3) * moved - 0.5
    assert torch.allclose(scores(LOGITS)[:, 2], expected, atol=1e-4)
    scales, biases = scores.values()
    assert torch.allclose(scales * LOGITS + biases, scores(LOGITS))


def test_the_fit_is_the_most_probable_scale_and_bias():
    labels = (torch.rand(60, 2, generator=DRAW) < (LOGITS[:, :2] - 20).sigmoid()).float()
    scores = ScaleAndBias(3, 2)
    scores.start_at(LOGITS)
    scores.fit(LOGITS[:, :2], labels)
    assert scores.log_scale.grad is None

    def loss(log_scale, bias, c):
        total = log_scale**2 / 2 + bias**2 / 18
        for row, label in zip(
            (LOGITS[:, c] - scores.center[c]).tolist(), labels[:, c], strict=True
        ):
            p = 1 / (1 + math.exp(-(math.exp(log_scale) * row + bias)))
            total -= math.log(p if label else 1 - p)
        return total

    for c in range(2):
        fitted = scores.log_scale[c].item(), scores.bias[c].item()
        near = [(fitted[0] + a, fitted[1] + b) for a in (-0.03, 0, 0.03) for b in (-0.05, 0, 0.05)]
        assert min(near, key=lambda at: loss(*at, c)) == pytest.approx(fitted)


def test_classes_that_no_image_has_get_the_mean_of_the_others():
    labels = (torch.rand(60, 2, generator=DRAW) < (LOGITS[:, :2] - 20).sigmoid()).float()
    alone, scores = ScaleAndBias(2, 2), ScaleAndBias(3, 3)
    alone.start_at(LOGITS[:, :2])
    scores.start_at(LOGITS)
    alone.fit(LOGITS[:, :2], labels)
    scores.fit(LOGITS, torch.cat([labels, torch.zeros(60, 1)], dim=1))
    for learned, expected in ((scores.log_scale, alone.log_scale), (scores.bias, alone.bias)):
        assert torch.allclose(learned[:2], expected, atol=1e-4)
        assert learned[2].item() == pytest.approx(expected.mean().item(), abs=1e-4)
    nothing = ScaleAndBias(3, 3)
    nothing.fit(LOGITS, torch.zeros(60, 3))
    assert not nothing.log_scale.any()
    assert not nothing.bias.any()
