import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.nn import functional as F

from kdpl.report.labeling import suggestions as labeling
from kdpl.report.labeling.suggestions import cross_validated_scores, to_label, wrong_labels


def features_of(n, seed, width=6):
    return F.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def plainly(features, predictions, n, labeled):
    """The greedy choice as it is written, one candidate at a time."""
    classes = predictions.shape[1]
    weights = [
        1 - sum(p * np.log(p) for p in row if p > 0) / np.log(classes)
        for row in predictions.double().numpy()
    ]
    rows = features.double().numpy()
    seen, chosen = [*labeled.double().numpy()], []
    for _ in range(n):
        gains = {}
        for j in range(len(rows)):
            if j not in chosen:
                gains[j] = sum(
                    w * max([0, f @ rows[j], *(f @ s for s in seen)])
                    for w, f in zip(weights, rows, strict=True)
                )
        chosen.append(max(gains, key=gains.get))
        seen.append(rows[chosen[-1]])
    return chosen


@pytest.mark.parametrize(("seed", "labeled", "cells"), [(1, 0, 2**24), (4, 3, 30)])
def test_the_choice_is_the_greedy_one(seed, labeled, cells, monkeypatch):
    # at once or in parts
    monkeypatch.setattr(labeling, "_CELLS", cells)
    features, seen = features_of(24, seed), features_of(labeled, seed + 10)
    draw = torch.Generator().manual_seed(seed)
    predictions = torch.randn(24, 4, generator=draw).mul(3).softmax(dim=1)
    assert to_label(features, predictions, 9, seen) == plainly(features, predictions, 9, seen)


def test_all_images_can_be_chosen_duplicates_and_certain_predictions_too():
    features, predictions = features_of(4, 1).repeat(2, 1), torch.eye(8)
    assert sorted(to_label(features, predictions, 8, features[:0])) == [*range(8)]


def groups(a_class, classes=3, seed=5, noise=0.1):
    labels = torch.arange(classes).repeat(a_class)
    centres = features_of(classes, seed)
    drawn = torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(seed))
    return F.normalize(centres[labels] + noise * drawn, dim=1), labels


def plain_scores(features, labels, group, seed):
    """Each image's probabilities by scikit-learn's discriminant of the images in other folds."""
    fold, count, probabilities = {}, [0, 0, 0], []
    for i in torch.randperm(30, generator=torch.Generator().manual_seed(seed)).tolist():
        if int(group[i]) not in fold:
            fold[int(group[i])] = count[labels[i]] % 5
            count[labels[i]] += 1
    for i in range(30):
        rest = [j for j in range(30) if fold[int(group[j])] != fold[int(group[i])]]
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.5, priors=[1 / 3] * 3)
        model.fit(features[rest].double().numpy(), labels[rest].numpy())
        probabilities.append(model.predict_proba(features[[i]].double().numpy())[0])
    return np.array(probabilities)


# each image for itself, or each image of a class and the next one in a group
@pytest.mark.parametrize(
    "group", [torch.arange(30), torch.arange(30) % 3 + 3 * (torch.arange(30) // 6)]
)
def test_each_image_is_judged_by_a_discriminant_that_did_not_see_its_group(group):
    # as many of each class in a fold, or else scikit-learn weights the covariances
    features, labels = groups(10)
    scores = cross_validated_scores(features, labels, 3, group, seed=2).softmax(dim=1)
    expected = plain_scores(features, labels, group, seed=2)
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-4)


def plainly_wrong(scores, labels):
    """The likeliest mixture of right and wrong labels, one label and one share at a time."""
    classes, best = scores.shape[1], None
    for third in range(-3, 31):
        logits = scores.double().numpy() / 2 ** (third / 3)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        for share in [0.0, *(2 ** (half / 2) for half in range(-20, -2))]:
            terms = [
                ((1 - share) * p[i, label], share * (1 - p[i, label]) / (classes - 1))
                for i, label in enumerate(labels)
            ]
            likelihood = sum(np.log(max(right + wrong, 1e-30)) for right, wrong in terms)
            if best is None or likelihood > best[0] + 1e-6:
                best = (likelihood, [wrong / (right + wrong) for right, wrong in terms], p)
    return best[1:]


@pytest.mark.parametrize("share", [0, 0.2])
def test_the_probability_of_a_wrong_label_is_that_of_the_likeliest_mixture(share):
    features, labels = groups(10, noise=0.3)
    draw = torch.Generator().manual_seed(1)
    changed = torch.randperm(30, generator=draw)[: round(share * 30)]
    other = labels[changed] + torch.randint(1, 3, (len(changed),), generator=draw)
    labels[changed] = other % 3
    scores = cross_validated_scores(features, labels, 3, torch.arange(30))
    wrong, probabilities = wrong_labels(scores, labels)
    expected_wrong, expected = plainly_wrong(scores, labels.tolist())
    np.testing.assert_allclose(wrong.numpy(), expected_wrong, atol=1e-4)
    np.testing.assert_allclose(probabilities.numpy(), expected, atol=1e-4)


def test_a_class_in_one_group_is_not_judged_and_a_class_without_images_is_impossible():
    features, labels = groups(6)
    labels[0] = 3  # alone in its class
    group = torch.where(labels == 2, 99, torch.arange(18))
    scores = cross_validated_scores(features, labels, 5, group)
    unjudged = labels >= 2
    assert scores.isnan().any(dim=1).equal(unjudged)
    assert (scores[~unjudged, 4] == -torch.inf).all()
    wrong, probabilities = wrong_labels(scores, labels)
    assert wrong.isnan().equal(unjudged)
    assert (probabilities[~unjudged, 4] == 0).all()


def test_labels_of_one_class_are_right_and_labels_without_another_image_are_not_judged():
    for labels, classes, expected in (
        (torch.zeros(3).long(), 1, [0.0] * 3),
        (torch.arange(3), 3, None),
    ):
        scores = cross_validated_scores(features_of(3, 1), labels, classes, torch.arange(3))
        wrong, _ = wrong_labels(scores, labels)
        assert wrong.isnan().all() if expected is None else wrong.tolist() == expected
