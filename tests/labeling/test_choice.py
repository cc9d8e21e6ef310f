import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdpl.labeling import choice as labeling
from kdpl.labeling.choice import probabilities_without_own_label, to_label


def features_of(n, seed, width=6):
    return F.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def plainly(features, predictions, n, labeled):
    """The greedy choice as it is written, one candidate at a time."""
    classes = predictions.shape[1]
    weights = [1 - sum(p * np.log(p) for p in row if p > 0) / np.log(classes) for row in predictions.double().numpy()]
    rows = features.double().numpy()
    seen, chosen = [*labeled.double().numpy()], []
    for _ in range(n):
        gains = {}
        for j in range(len(rows)):
            if j not in chosen:
                gains[j] = sum(
                    w * max([0, f @ rows[j], *(f @ s for s in seen)]) for w, f in zip(weights, rows, strict=True)
                )
        chosen.append(max(gains, key=gains.get))
        seen.append(rows[chosen[-1]])
    return chosen


@pytest.mark.parametrize("cells", [2**24, 30], ids=["at once", "in parts"])
@pytest.mark.parametrize("labeled", [0, 3])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_choice_is_the_greedy_one(seed, labeled, cells, monkeypatch):
    monkeypatch.setattr(labeling, "_CELLS", cells)
    features, known = features_of(24, seed), features_of(labeled, seed + 10)
    predictions = torch.randn(24, 4, generator=torch.Generator().manual_seed(seed)).mul(3).softmax(dim=1)
    assert to_label(features, predictions, 9, known) == plainly(features, predictions, 9, known)


def test_all_images_can_be_chosen_duplicates_and_certain_predictions_too():
    features, predictions = features_of(4, 1).repeat(2, 1), torch.eye(8)
    assert sorted(to_label(features, predictions, 8)) == [*range(8)]


def test_of_two_groups_the_uncertain_one_comes_first_and_a_labelled_one_last():
    axes = torch.eye(3)
    features = torch.cat([axes[:1].expand(3, 3), axes[1:2].expand(3, 3), axes[2:].expand(3, 3)])
    certain, uncertain = torch.tensor([1.0, 0.0]).expand(3, 2), torch.tensor([0.5, 0.5]).expand(3, 2)
    predictions = torch.cat([certain, uncertain, uncertain])
    assert [i // 3 for i in to_label(features, predictions, 3, axes[2:])] == [1, 0, 0]
    assert [i // 3 for i in to_label(features, predictions, 3)[2:]] == [0]


def groups(a_class, classes=3, seed=5):
    labels = torch.arange(classes).repeat(a_class)
    centres = features_of(classes, seed)
    noise = torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(seed))
    return F.normalize(centres[labels] + 0.1 * noise, dim=1), labels


def test_each_image_gets_the_probability_of_a_discriminant_without_its_fold():
    discriminant = pytest.importorskip("sklearn.discriminant_analysis").LinearDiscriminantAnalysis
    features, labels = groups(10)  # as many of each class in a fold, or else scikit-learn weights the covariances
    found = probabilities_without_own_label(features, labels, 3, seed=2)
    fold, count = {}, [0, 0, 0]
    for i in torch.randperm(30, generator=torch.Generator().manual_seed(2)).tolist():
        fold[i] = count[labels[i]] % 5
        count[labels[i]] += 1
    for i in range(30):
        rest = [j for j in range(30) if fold[j] != fold[i]]
        model = discriminant(solver="lsqr", shrinkage=0.5, priors=[1 / 3] * 3)
        model.fit(features[rest].double().numpy(), labels[rest].numpy())
        expected = model.predict_proba(features[[i]].double().numpy())[0]
        np.testing.assert_allclose(found[i].numpy(), expected, atol=1e-4)


def test_wrong_labels_are_the_least_probable():
    features, labels = groups(20)
    wrong = [4, 17, 33]
    labels[wrong] = (labels[wrong] + 1) % 3
    own = probabilities_without_own_label(features, labels, 3).gather(1, labels[:, None])[:, 0]
    assert sorted(own.argsort()[:3].tolist()) == wrong


def test_an_image_that_is_alone_in_its_class_is_not_judged_and_a_class_without_images_is_impossible():
    features, labels = groups(6)
    labels[0] = 3
    found = probabilities_without_own_label(features, labels, 5)
    assert found[0].isnan().all()
    assert not found[1:].isnan().any()
    assert (found[1:, 4] == 0).all()


def test_labels_of_one_class_alone_are_right():
    assert (probabilities_without_own_label(features_of(3, 1), torch.zeros(3, dtype=torch.long), 1) == 1).all()
