import itertools

import pytest
import torch
import torch.nn.functional as F

from benchmarks.worlds.photographs.projections import Classifier, choose_settings, fit_projections


@pytest.fixture
def classifier():
    draw = torch.Generator().manual_seed(0)
    texts = 0.7 + torch.randn(30, 6, generator=draw)
    rows = texts @ torch.randn(6, 9, generator=draw) + 0.3 * torch.randn(30, 9, generator=draw)
    return Classifier(rows, torch.randn(30, generator=draw), texts)


@pytest.fixture
def features():
    return 0.5 + torch.randn(40, 9, generator=torch.Generator().manual_seed(1))


def plain_cosines(classifier, mean, ridge, features, texts):
    """Cosines [N, C] by ridge regression in one space, without a root, and one image and text at a time."""
    units = [text / text.norm() for text in classifier.texts.double()]
    centre = sum(units) / len(units)
    direction = centre / centre.norm()
    without = lambda text: text - direction.dot(text) * direction  # noqa: E731
    centred = [without(unit - centre) for unit in units]
    row_mean = classifier.weight.double().mean(dim=0)
    rows = [(row - row_mean) / (row - row_mean).norm() for row in classifier.weight.double()]
    gram = ridge * torch.eye(len(centre)).double()
    cross = torch.zeros(len(centre), len(row_mean)).double()
    for text, row in zip(centred, rows, strict=True):
        gram += torch.outer(text, text)
        cross += torch.outer(text, row)
    inverse = torch.linalg.inv(gram)
    result = torch.zeros(len(features), len(texts))
    for i, image in enumerate(features.double() - mean.double()):
        seen = cross @ image
        for j, text in enumerate(texts.double()):
            direction_free = without(text)
            norms = (seen @ inverse @ seen).sqrt() * (
                direction_free @ inverse @ direction_free
            ).sqrt()
            result[i, j] = direction_free @ inverse @ seen / norms
    return result


def test_projections_are_ridge_regression_of_the_rows_on_the_texts(classifier, features):
    mean = features.mean(dim=0)
    texts = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    for ridge in (0.1, 3.0):
        expected = plain_cosines(classifier, mean, ridge, features, texts)
        cosines = fit_projections(classifier, mean, ridge).cosines(features, texts)
        torch.testing.assert_close(cosines, expected, rtol=1e-4, atol=1e-5)


def test_settings_are_those_that_best_predict_the_classifier_on_classes_that_were_left_out(
    classifier, features
):
    ridges, scales, mean = (0.01, 30.0), (6.0, 40.0), features.mean(dim=0)
    losses = dict.fromkeys(itertools.product(ridges, scales), 0.0)
    logits = features @ classifier.weight.T + classifier.bias
    for (ridge, scale), fold in itertools.product(losses, range(5)):
        held = torch.arange(30) % 5 == fold
        part = Classifier(*(rows[~held] for rows in vars(classifier).values()))
        cosines = plain_cosines(part, mean, ridge, features, classifier.texts[held])
        expected = logits.softmax(dim=1)[:, held]
        losses[ridge, scale] += F.cross_entropy(scale * cosines, expected).item()
    best = min(losses, key=losses.get)
    assert choose_settings(classifier, features, ridges, scales, folds=5) == best
