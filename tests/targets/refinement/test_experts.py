"""Experts: a probe beside the teacher's text, weighted by labels that neither saw."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from kdpl.data.probe import fit_probe
from kdpl.targets.refinement import experts
from kdpl.targets.refinement import refine as refinement
from kdpl.targets.refinement.experts import COST, PRIOR, Evidence, assign, combine, fit_weights
from kdpl.targets.refinement.refine import (
    RefinementConfig,
    Weights,
    affinity,
    find_space,
    nearest,
    refine,
    standardize,
)

CLASSES = 4
COLUMNS = ("features", "probed", "log_probabilities", "labels", "validation", "groups")


def world(images=160, width=12, shots=5, seed=0, text=1.0, spread=1.1):
    """Gaussian classes, of which ``shots`` images each are labelled; returns evidence and all true classes."""
    draw = torch.Generator().manual_seed(seed)
    truth = torch.arange(images) % CLASSES
    centres = torch.randn(CLASSES, width, generator=draw)
    features = centres[truth] + spread * torch.randn(images, width, generator=draw)
    logits = text * F.one_hot(truth, CLASSES) + torch.randn(images, CLASSES, generator=draw)
    labels = torch.where(torch.arange(images) < shots * CLASSES, truth, -1)
    probed, text, none = F.normalize(features, dim=1), logits.log_softmax(dim=1), labels * 0 - 1
    alone = torch.arange(images)
    return Evidence(features, probed, text, labels, none, alone, trusted=True), truth


def bursts(evidence, size=3):
    """The same, with each labelled image as a group of near-copies."""
    labeled = torch.nonzero(evidence.labels >= 0).flatten()
    unlabeled = torch.nonzero(evidence.labels < 0).flatten()
    rows = torch.cat([labeled.repeat_interleave(size), unlabeled])
    columns = {name: getattr(evidence, name)[rows] for name in COLUMNS}
    for name in ("features", "probed"):
        draw = torch.Generator().manual_seed(1)
        columns[name] += 1e-3 * torch.randn(columns[name].shape, generator=draw)
    return replace(evidence, **columns)


def plain_probe(features, labels, strength, of):
    """Log probabilities, of images that are not normalised, by a regression in which each class counts alike."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    lengths = [np.linalg.norm(x.double().numpy(), axis=1, keepdims=True) for x in (features, of)]
    x, z = (rows.double().numpy() / n for rows, n in zip((features, of), lengths, strict=True))
    scale = np.sqrt(sum(column.var(ddof=1) for column in x.T))
    x, z = ((rows - x.mean(axis=0)) / scale for rows in (x, z))
    labels = labels.numpy()
    classes, counts = np.unique(labels, return_counts=True)
    weights = [len(labels) / len(classes) / counts[classes.tolist().index(y)] for y in labels]
    probe = linear_model.LogisticRegression(C=strength, max_iter=20_000, tol=1e-9)
    probe.fit(x, labels, sample_weight=weights)
    return probe.predict_log_proba(z), probe.classes_


@pytest.mark.parametrize(
    ("images", "classes", "strength"),
    [(160, 4, 3.0), (160, 4, 300.0), (9, 4, 30.0), (160, 2, 10.0)],
)
def test_the_probe_is_scikit_learns_logistic_regression(images, classes, strength):
    evidence, truth = world(width=20)
    rows = (torch.arange(160) < images) & (truth < classes)
    probe = fit_probe(evidence.probed[rows], truth[rows], strength)
    features = evidence.features
    expected, classes = plain_probe(features[rows], truth[rows], strength, features)
    assert probe.classes.tolist() == classes.tolist()
    made = probe.log_probabilities(evidence.probed).exp()
    assert np.abs(made.numpy() - np.exp(expected)).max() < 1e-3
    alone = fit_probe(evidence.probed[truth == 3], truth[truth == 3], strength)
    assert alone.classes.tolist() == [3]


def test_experts_are_multiplied_and_classes_without_a_label_keep_their_probability():
    draw = torch.Generator().manual_seed(0)
    text = torch.randn(7, 5, generator=draw).log_softmax(dim=1)
    classes = torch.tensor([0, 2, 3])
    probe = torch.randn(7, 3, generator=draw).log_softmax(dim=1)
    made = combine(text, probe, classes, (0.3, 1.7)).exp()
    for row, first, second in zip(made, text.exp(), probe.exp(), strict=True):
        products = [first[c] ** 0.3 * second[i] ** 1.7 for i, c in enumerate(classes)]
        mass = first[classes].sum()
        expected = [(mass * product / sum(products)).item() for product in products]
        assert row[classes].tolist() == pytest.approx(expected, abs=1e-6)
        assert row[[1, 4]].tolist() == pytest.approx(first[[1, 4]].tolist(), abs=1e-6)


def test_weights_minimise_log_loss_and_penalty():
    evidence, truth = world()
    noise = 0.5 * torch.randn(160, CLASSES, generator=torch.Generator().manual_seed(9))
    other = (0.5 * F.one_hot(truth, CLASSES) + noise).log_softmax(dim=1)
    both = torch.stack([evidence.log_probabilities, other])

    def losses(weights):
        logits = sum(w * logs.double() for w, logs in zip(weights, both, strict=True))
        log_losses = (
            -(row - row.exp().sum().log())[y] for row, y in zip(logits, truth, strict=True)
        )
        return sum(log_losses).item(), PRIOR / 2 * sum((w - 1) ** 2 for w in weights)

    weights, value = fit_weights(both, truth, torch.ones(160))
    assert min(weights) > 0
    assert value == pytest.approx(losses(weights)[0] + 2 * COST, rel=1e-6)
    for i in range(2):  # convex: no better along either axis

        def along(weight, i=i):
            return sum(losses([weight if j == i else weights[j] for j in range(2)]))

        best = minimize_scalar(along, bounds=(0, 5), method="bounded")
        assert best.fun >= sum(losses(weights)) - 1e-4


def test_an_expert_that_saves_less_than_its_cost_has_no_weight(monkeypatch):
    evidence, truth = world(shots=6)
    noise = torch.randn(160, CLASSES, generator=torch.Generator().manual_seed(1))
    other = (0.3 * F.one_hot(truth, CLASSES) + noise).log_softmax(dim=1)
    both = torch.stack([evidence.log_probabilities, other])
    monkeypatch.setattr(experts, "COST", 0.0)
    ones = torch.ones(160)
    free = fit_weights(both, truth, ones)
    alone = fit_weights(torch.stack([both[0], both[0] * 0]), truth, ones)
    assert free[0][1] > 0
    assert alone[1] > free[1]
    monkeypatch.setattr(experts, "COST", alone[1] - free[1] + 0.01)
    assert fit_weights(both, truth, ones)[0] == (alone[0][0], 0.0)
    monkeypatch.setattr(experts, "COST", alone[1] - free[1] - 0.01)
    assert fit_weights(both, truth, ones)[0] == pytest.approx(free[0])


def plainly(evidence, config, strength, weights):
    """All folds by hand: the mixed assignments, the share of each candidate, and the share of hits."""
    unit = F.normalize(standardize(evidence.features), dim=1)
    neighbors = affinity(*nearest(unit, config.neighbors, evidence.groups))
    labeled = torch.nonzero(evidence.labels >= 0).flatten().tolist()
    labeled.sort(key=lambda i: evidence.features[i, 0])
    # groups are of one class and of one size here, and come in turns as images do
    fold_of, places, sizes = {}, {}, evidence.groups.bincount()
    for i in labeled:
        y, group = int(evidence.labels[i]), int(evidence.groups[i])
        if group not in fold_of:
            fold_of[group] = places.setdefault(y, 0) % 5
            places[y] += 1
    folds = {i: fold_of[int(evidence.groups[i])] for i in labeled}

    def predicted(held_out, settings, weights):
        seen = [i for i in labeled if i not in held_out]
        probed = evidence.probed
        logs, _ = plain_probe(probed[seen], evidence.labels[seen], strength, probed)
        mixed = weights[0] * evidence.log_probabilities + weights[1] * torch.tensor(logs).float()
        mixed = mixed.softmax(dim=1)
        labels = torch.full_like(evidence.labels, -1)
        labels[seen] = evidence.labels[seen]
        mixed[seen] = F.one_hot(evidence.labels[seen], CLASSES).float()
        if settings is None:
            return mixed
        return refine(unit, mixed, neighbors, labels, settings, config.rounds)

    def hits(rows):
        right = dict.fromkeys(fold_of, 0.0)
        for i in labeled:
            group = int(evidence.groups[i])
            right[group] += int(rows[i].argmax() == evidence.labels[i]) / int(sizes[group])
        return sum(right.values())

    # the first without labels' settings, and with equal weights
    tried = [
        (Weights(0.3, 3.0, 0.3), (1.0, 1.0)),
        (Weights(0.03, 3.0, 1.0), weights),
        (Weights(0.1, 3.0, 0.3), weights),
        (None, weights),
    ]
    held_out_rows, results = [], []
    for settings, experts_weights in tried:
        rows = torch.zeros_like(evidence.log_probabilities)
        for fold in range(5):
            held_out = [i for i in labeled if folds[i] == fold]
            rows[held_out] = predicted(held_out, settings, experts_weights)[held_out]
        held_out_rows.append(rows)
        results.append(predicted([], settings, experts_weights))

    # e times the share for a standard deviation, at most, more hits
    deviation = 0.5 * len(fold_of) ** 0.5
    shares = np.exp([hits(rows) / deviation for rows in held_out_rows])
    shares /= shares.sum()
    z, rows = (
        sum(float(share) * part for share, part in zip(shares, parts, strict=True))
        for parts in (results, held_out_rows)
    )
    return z, shares, hits(rows) / len(fold_of)


@pytest.mark.parametrize("size", [1, 3])
def test_all_folds_and_the_result_are_those_of_a_plain_implementation(size):
    evidence, _ = world(shots=6)
    evidence = evidence if size == 1 else bursts(evidence, size)
    config = RefinementConfig(neighbors=4, rounds=4)
    made = assign(evidence, config)
    z, shares, right = plainly(evidence, config, made.strength, made.weights)
    assert made.judges == 24
    assert [*made.shares] == pytest.approx(shares.tolist())
    assert made.right[1] == pytest.approx(right)
    # a probe of little regularisation magnifies where its optimiser stops
    assert (made.assignments - z).abs().max() < 1e-2


def two_encoders(second, evidence):
    """The same with a second encoder's features beside the first one's."""
    return replace(
        evidence,
        features=torch.cat([evidence.features, second], dim=1),
        probed=torch.cat([evidence.probed, F.normalize(second, dim=1)], dim=1),
        widths=(evidence.features.shape[1], second.shape[1]),
    )


def space_of(evidence, config):
    text, widths = evidence.log_probabilities.exp(), list(evidence.widths)
    return find_space(evidence.features, evidence.probed, widths, text, evidence.groups, config)


def test_encoders_are_joined_with_equal_weight_whatever_their_widths_and_scales():
    evidence, truth = world(text=3.0, spread=0.3)
    centres = torch.randn(CLASSES, 7, generator=torch.Generator().manual_seed(5))
    noise = torch.randn(160, 7, generator=torch.Generator().manual_seed(6))
    second = centres[truth] + 0.3 * noise
    made = space_of(two_encoders(9 * second, evidence), RefinementConfig(neighbors=4))
    scaled = []
    for rows in (evidence.features, second):
        rows = (rows - rows.mean(dim=0)) / rows.std(dim=0)
        scaled.append(rows / rows.norm(dim=1, keepdim=True))
    unit = torch.cat(scaled, dim=1) / 2**0.5
    assert made.gaussian.allclose(unit, atol=1e-5)
    near = affinity(*nearest(unit, 4, evidence.groups))
    assert (made.neighbors.to_dense() - near.to_dense()).abs().max() < 1e-5
    probed = torch.cat([evidence.probed, F.normalize(second, dim=1)], dim=1) / 2**0.5
    assert made.probed.allclose(probed, atol=1e-6)


def test_gaussians_of_an_encoder_that_refines_otherwise_do_not_count(monkeypatch):
    evidence, truth = world(text=3.0, spread=0.3)
    second = torch.randn(160, 7, generator=torch.Generator().manual_seed(6)) + 2 * truth[:, None]
    both = two_encoders(second, evidence)
    monkeypatch.setattr(refinement, "SAME", 1.0)
    made = space_of(both, RefinementConfig())
    assert made.gaussian.shape == (160, 12)
    assert made.probed.shape == (160, 19)


def test_one_label_a_class_keeps_the_refinement_without_labels():
    evidence, _ = world(shots=1)
    made = assign(evidence, RefinementConfig())
    z = plain_refinement(evidence, (1.0, 1.0))
    assert (made.shares, made.right, made.judges) == ((1.0,), None, 0)
    assert (made.assignments - z).abs().max() < 1e-2


def plain_refinement(evidence, weights):
    """The settings without labels, for text and a probe of all labels."""
    labeled, config = evidence.labels >= 0, RefinementConfig()
    probed = evidence.probed
    logs, _ = plain_probe(probed[labeled], evidence.labels[labeled], 10.0, probed)
    mixed = weights[0] * evidence.log_probabilities + weights[1] * torch.tensor(logs).float()
    unit = F.normalize(standardize(evidence.features), dim=1)
    near = affinity(*nearest(unit, config.neighbors, evidence.groups))
    first = Weights(0.3, 3.0, 0.3)
    return refine(unit, mixed.softmax(dim=1), near, evidence.labels, first, config.rounds)


def test_images_of_a_group_and_class_count_as_one_for_the_weights(monkeypatch):
    evidence, truth = world()
    other = torch.randn(160, CLASSES, generator=torch.Generator().manual_seed(9)).log_softmax(dim=1)
    both = torch.stack([evidence.log_probabilities, other])
    expected = fit_weights(both, truth, torch.ones(160))
    copies = both.repeat_interleave(5, dim=1), truth.repeat_interleave(5)
    made = fit_weights(*copies, torch.full((800,), 0.2))
    assert made[0] == pytest.approx(expected[0], abs=1e-3)
    assert made[1] == pytest.approx(expected[1])
    labels, groups = torch.tensor([0, 0, 1, 1, 1, -1]), torch.tensor([3, 3, 3, 4, 4, 5])
    few = Evidence(*[torch.zeros(6, 2)] * 3, labels, labels, groups, trusted=True)
    assert few.counts.tolist() == [0.5, 0.5, 1, 0.5, 0.5, 1]
    given = []
    monkeypatch.setattr(
        experts, "fit_weights", lambda *args: given.append(args[2]) or fit_weights(*args)
    )
    assign(bursts(world(shots=3)[0]), RefinementConfig(rounds=1))
    assert torch.stack(given).allclose(torch.tensor(1 / 3))
    assert len(given[0]) == 36


def test_without_labels_the_teachers_predictions_are_refined():
    evidence, _ = world(shots=0)
    made = assign(evidence, RefinementConfig())
    unit = F.normalize(standardize(evidence.features), dim=1)
    near = affinity(*nearest(unit, 5, evidence.groups))
    predictions, rounds = evidence.log_probabilities.exp(), RefinementConfig.rounds
    expected = refine(unit, predictions, near, evidence.labels, Weights(0.3, 3.0, 0.3), rounds)
    assert (made.assignments - expected).abs().max() < 1e-5
    assert (made.strength, made.right) == (None, None)


def test_a_tuned_teacher_is_judged_by_validation_images_alone():
    evidence, truth = world(shots=5)
    tuned = replace(evidence, trusted=False)
    unjudged = assign(tuned, RefinementConfig())
    assert (unjudged.weights, unjudged.right, unjudged.judges) == ((1.0, 1.0), None, 0)
    assert unjudged.shares == (1.0,)

    held_out = torch.where(torch.arange(160) >= 140, truth, -1)
    judged = assign(replace(tuned, validation=held_out), RefinementConfig())
    assert judged.judges == 20
    assert len(judged.shares) == 4
    assert judged.weights != (1.0, 1.0)
    assert (judged.assignments[140:].argmax(dim=1) != truth[140:]).any() or judged.right[1] == 1


@pytest.mark.slow
@pytest.mark.parametrize("useless", [0, 1], ids=["text", "features"])
def test_a_useless_expert_gets_a_weight_near_0_and_costs_at_most_a_point(useless):
    rows = []
    for seed in range(3):
        evidence, truth = world(shots=8, seed=seed, text=3.0, spread=1.4)
        if useless == 0:
            order = torch.randperm(160, generator=torch.Generator().manual_seed(seed))
            evidence = replace(evidence, log_probabilities=evidence.log_probabilities[order])
        else:
            draw = torch.Generator().manual_seed(seed)
            noise = torch.randn(evidence.features.shape, generator=draw)
            evidence = replace(evidence, features=noise, probed=F.normalize(noise, dim=1))
        made = assign(evidence, RefinementConfig())
        probe = fit_probe(evidence.probed[:32], truth[:32], made.strength)
        probed = probe.log_probabilities(evidence.probed)
        scores = (evidence.log_probabilities, probed, made.assignments)
        right = [(score.argmax(dim=1) == truth)[32:].float().mean().item() for score in scores]
        rows.append([*made.weights, *right])
    *weights, text, probe, result = np.mean(rows, axis=0)
    # of noise that seems to save enough in some of the draws
    assert weights[useless] < 0.25
    assert weights[1 - useless] > 1
    assert result >= max(text, probe) - 0.01
