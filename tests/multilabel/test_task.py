"""The maths of task, scores and report against plain loops and scikit-learn."""

import math

import numpy as np
import pytest
import torch
import world
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score

from kdpl.errors import ConfigError
from kdpl.multilabel.metrics import MultiLabelMetrics, class_scores
from kdpl.multilabel.report import STRENGTHS, average_precision_interval, probed_map
from kdpl.multilabel.scores import ScaleAndBias
from kdpl.multilabel.task import MultiLabel
from kdpl.tasks import DecisionRule, Predicted, Prediction, agreement_of, require_one_class

DRAW = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(6, 4, generator=DRAW)
TARGETS = 3 * torch.randn(6, 4, generator=DRAW)
LABELS = (torch.rand(6, 4, generator=DRAW) < 0.4).float()
TASK = MultiLabel()


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def pairs(*tensors):
    return zip(*(tensor.double().flatten().tolist() for tensor in tensors), strict=True)


def test_the_loss_is_the_binary_cross_entropy_summed_over_classes():
    expected = -sum(
        y * math.log(sigmoid(z)) + (1 - y) * math.log(1 - sigmoid(z))
        for z, y in pairs(LOGITS, LABELS)
    )
    assert TASK.loss(LOGITS, LABELS).item() == pytest.approx(expected / 6, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_is_the_kl_of_each_class_by_itself(temperature):
    def one(z, t):
        p, q = sigmoid(t / temperature), sigmoid(z / temperature)
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    expected = temperature**2 * sum(one(z, t) for z, t in pairs(LOGITS, TARGETS)) / 24
    assert TASK.divergence(LOGITS, TARGETS, temperature).item() == pytest.approx(expected, rel=1e-5)
    assert TASK.divergence(LOGITS, LOGITS).item() == 0


def test_labels_are_the_classes_at_or_above_their_thresholds():
    task = MultiLabel([0.5, 0.9, 0.0, 1.0])
    logits = torch.tensor([[0.0, 2.0, -50.0, 3.0], [-0.1, 2.3, 0.0, 200.0]])
    assert task.labels(logits).tolist() == [[True, False, True, False], [False, True, True, True]]
    assert task.same(logits, logits).tolist() == [True, True]
    assert task.same(logits, logits.flip(0)).tolist() == [False, False]
    ranked = task.probabilities(logits).topk(4, dim=1)
    named = [
        sorted(task.decide(labels, shown, DecisionRule()))
        for labels, shown in zip(ranked.indices.tolist(), ranked.values.tolist(), strict=True)
    ]
    assert named == [[0, 2], [1, 2, 3]]
    everything = DecisionRule(threshold=0.0)
    assert len(task.decide(ranked.indices[0].tolist(), ranked.values[0].tolist(), everything)) == 4


def test_agreement_counts_images_to_which_either_gives_the_class():
    draw = torch.Generator().manual_seed(1)
    first, second = (torch.rand(400, 5, generator=draw) - 0.8 for _ in range(2))
    second[:, 4] = -1
    first[:, 3] = second[:, 3] = -1
    shares = []
    for c in range(5):
        has = [(a >= 0, b >= 0) for a, b in pairs(first[:, c], second[:, c])]
        either = sum(a or b for a, b in has)
        if either:
            shares.append(sum(a and b for a, b in has) / either)
    assert len(shares) == 4
    parts = [TASK.agreements(first[rows::3], second[rows::3]) for rows in range(3)]
    assert agreement_of(sum(parts)).item() == pytest.approx(sum(shares) / 4)
    # independent labels of a fifth of the images agree on two thirds of all cells
    assert 0.05 < agreement_of(sum(parts)[:, :3]).item() < 0.15
    assert agreement_of(TASK.agreements(first, first)).item() == 1
    nothing = torch.full((3, 5), -1.0)
    assert agreement_of(TASK.agreements(nothing, nothing)).item() == 0


def test_a_table_has_names_and_probabilities_in_one_cell_each():
    columns = TASK.columns(3, DecisionRule())
    assert columns == ["labels", "scores"]
    predicted = Predicted(
        [Prediction("cat", 0.9), Prediction("dog", 0.61234567)], torch.empty(0), {}
    )
    assert TASK.cells(predicted, columns) == {"labels": "cat;dog", "scores": "0.9;0.612346"}
    assert TASK.cells(Predicted([], torch.empty(0), {}), columns) == {"labels": "", "scores": ""}


def test_thresholds_out_of_range_or_of_other_classes_are_refused():
    with world.refused(ConfigError, "expected numbers from 0 to 1"):
        MultiLabel([0.5, 1.5])
    with world.refused(ConfigError, "2 thresholds for 3 classes"):
        MultiLabel([0.5, 0.5]).require_classes("abc")
    with world.refused(ConfigError, "class 'b;c' has a ';' in its name"):
        MultiLabel().require_classes(["a", "b;c"])
    with world.refused(ConfigError, "calibrate is defined for images of one class each"):
        require_one_class("multilabel", "calibrate")


@pytest.mark.parametrize("seed", range(2))
def test_the_metrics_are_those_of_scikit_learn_with_ties_and_empty_classes(seed):
    draw = np.random.default_rng(seed)
    # few different values, so that there are ties
    logits = draw.integers(-6, 7, size=(40, 7)) / 2
    labels = (draw.random((40, 7)) < 0.2).astype(int)
    labels[:, 2] = 0
    thresholds = draw.choice([0.2, 0.5, 0.7], size=7)
    decided = 1 / (1 + np.exp(-logits)) >= thresholds
    having = [c for c in range(7) if labels[:, c].any()]
    precisions = {c: average_precision_score(labels[:, c], logits[:, c]) for c in having}
    f1 = {c: f1_score(labels[:, c], decided[:, c]) for c in having}

    scores = class_scores(torch.tensor(logits), torch.tensor(labels), thresholds.tolist())
    assert scores.average_precision.isnan().tolist() == [c not in having for c in range(7)]
    assert scores.average_precision[having].tolist() == pytest.approx([*precisions.values()])
    assert scores.f1[having].tolist() == pytest.approx([*f1.values()])

    metric = MultiLabelMetrics(4, thresholds.tolist())
    for part in np.array_split(np.arange(40), 3):
        metric.update(torch.tensor(logits[part]).float(), torch.tensor(labels[part]).float())
    values = {name: value.item() for name, value in metric.compute().items()}
    halves = {"": range(7), "base_": range(4), "novel_": range(4, 7)}
    for half, classes in halves.items():
        present = [c for c in classes if c in having]
        assert values[f"{half}map"] == pytest.approx(np.mean([precisions[c] for c in present]))
        assert values[f"{half}chance"] == pytest.approx(
            np.mean([labels[:, c].mean() for c in present])
        )
        assert values[f"{half}macro_f1"] == pytest.approx(np.mean([f1[c] for c in present]))
        micro = f1_score(labels[:, [*classes]], decided[:, [*classes]], average="micro")
        assert values[f"{half}micro_f1"] == pytest.approx(micro)
    base, novel = values["base_map"], values["novel_map"]
    assert values["hm"] == pytest.approx(2 * base * novel / (base + novel))
    # nothing, and not 0, where no class has an image
    metric = MultiLabelMetrics()
    metric.update(LOGITS, torch.zeros_like(LABELS))
    assert all(math.isnan(value) for value in metric.compute().values())


SCALED = 20 + 3 * torch.randn(60, 3, generator=DRAW)


def test_scores_begin_a_standard_deviation_above_the_mean_of_each_class():
    scores = ScaleAndBias(3, 2)
    scores.start_at(SCALED)
    expected = SCALED - SCALED.mean(0) - SCALED.std(0, correction=0)
    assert torch.allclose(scores(SCALED), expected, atol=1e-4)
    assert torch.allclose(scores.centered(SCALED[:, :2]), expected[:, :2], atol=1e-4)


def test_classes_that_are_not_learned_have_the_mean_of_those_that_are():
    scores = ScaleAndBias(3, 2)
    scores.start_at(SCALED)
    with torch.no_grad():
        scores.log_scale.copy_(torch.tensor([0.2, 0.4]))
        scores.bias.copy_(torch.tensor([1.0, -2.0]))
    moved = (SCALED - scores.center)[:, 2]
    expected = math.exp(0.3) * moved - 0.5
    assert torch.allclose(scores(SCALED)[:, 2], expected, atol=1e-4)
    scales, biases = scores.values()
    assert torch.allclose(scales * SCALED + biases, scores(SCALED))


def test_the_fit_is_the_most_probable_scale_and_bias():
    labels = (torch.rand(60, 2, generator=DRAW) < (SCALED[:, :2] - 20).sigmoid()).float()
    scores = ScaleAndBias(3, 2)
    scores.start_at(SCALED)
    scores.fit(SCALED[:, :2], labels)
    assert scores.log_scale.grad is None

    def loss(log_scale, bias, c):
        total = log_scale**2 / 2 + bias**2 / 18
        for row, label in zip(
            (SCALED[:, c] - scores.center[c]).tolist(), labels[:, c], strict=True
        ):
            p = 1 / (1 + math.exp(-(math.exp(log_scale) * row + bias)))
            total -= math.log(p if label else 1 - p)
        return total

    for c in range(2):
        fitted = scores.log_scale[c].item(), scores.bias[c].item()
        near = [(fitted[0] + a, fitted[1] + b) for a in (-0.03, 0, 0.03) for b in (-0.05, 0, 0.05)]
        assert min(near, key=lambda at: loss(*at, c)) == pytest.approx(fitted)


def test_classes_that_no_image_has_get_the_mean_of_the_others():
    labels = (torch.rand(60, 2, generator=DRAW) < (SCALED[:, :2] - 20).sigmoid()).float()
    alone, scores = ScaleAndBias(2, 2), ScaleAndBias(3, 3)
    alone.start_at(SCALED[:, :2])
    scores.start_at(SCALED)
    alone.fit(SCALED[:, :2], labels)
    scores.fit(SCALED, torch.cat([labels, torch.zeros(60, 1)], dim=1))
    for learned, expected in ((scores.log_scale, alone.log_scale), (scores.bias, alone.bias)):
        assert torch.allclose(learned[:2], expected, atol=1e-4)
        assert learned[2].item() == pytest.approx(expected.mean().item(), abs=1e-4)
    nothing = ScaleAndBias(3, 3)
    nothing.fit(SCALED, torch.zeros(60, 3))
    assert not nothing.log_scale.any()
    assert not nothing.bias.any()


def test_a_probe_is_a_logistic_regression_for_each_class_with_what_validation_images_choose():
    draw = np.random.default_rng(4)
    classes = draw.normal(size=(4, 8))

    def images(count):
        has = draw.random((count, 4)) < 0.4
        has[:, 3] = False
        features = has @ classes + draw.normal(size=(count, 8))
        return features / np.linalg.norm(features, axis=1, keepdims=True), has

    parts = [images(count) for count in (30, 80, 200)]
    x, y = parts[0]

    def precision(strength, number):
        rows, has = parts[number]
        scores = []
        for label in range(3):
            # by another way: the scale of features is a scale of weights, and so of C
            model = LogisticRegression(C=strength / x.var(axis=0).sum(), max_iter=1000)
            model.fit(x - x.mean(axis=0), y[:, label])
            margin = (rows - x.mean(axis=0)) @ model.coef_[0]
            scores.append(average_precision_score(has[:, label], margin))
        return np.mean(scores)

    tensors = [(torch.tensor(f).float(), torch.tensor(has)) for f, has in parts]
    best = max(STRENGTHS, key=lambda strength: precision(strength, 1))
    # neither the first, nor that of the test images
    assert best not in (STRENGTHS[0], max(STRENGTHS, key=lambda strength: precision(strength, 2)))
    assert probed_map(*tensors) == pytest.approx(precision(best, 2), abs=1e-3)
    without = probed_map(tensors[0], None, tensors[2])
    assert without == pytest.approx(precision(STRENGTHS[0], 2), abs=1e-3)


def test_an_interval_is_that_of_average_precisions_of_drawn_images():
    draw = np.random.default_rng(3)
    has = draw.random(60) < 0.3
    scores = has + draw.normal(size=60)
    precisions = []
    for _ in range(400):
        some = draw.integers(60, size=60)
        if has[some].any():
            precisions.append(average_precision_score(has[some], scores[some]))
    expected = np.quantile(precisions, [0.025, 0.975])
    assert average_precision_interval(scores, has) == pytest.approx(expected, abs=0.05)
    assert average_precision_interval(scores, np.zeros(60, dtype=bool)) is None
    # of 20 images the first has the class: what is drawn without it does not count as 0
    scores = np.linspace(1, 0, 20)
    assert average_precision_interval(scores, scores == 1) == (1.0, 1.0)
