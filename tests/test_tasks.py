import math

import plain
import pytest
import torch

from kdpl.tasks import MULTI_CLASS, DecisionRule, Predicted, Prediction, agreement_of

LOGITS = 4 * torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


def by_hand(row):
    powers = [math.exp(x) for x in row]
    return [power / sum(powers) for power in powers]


def test_probabilities_labels_and_loss_are_those_of_a_softmax():
    expected = torch.tensor([by_hand(row) for row in LOGITS.double().tolist()])
    assert plain.relative_error(MULTI_CLASS.probabilities(LOGITS), expected) < 1e-5
    assert plain.relative_error(MULTI_CLASS.log_probabilities(LOGITS), expected.log()) < 1e-5
    assert MULTI_CLASS.labels(LOGITS).tolist() == [row.index(max(row)) for row in LOGITS.tolist()]
    loss = -sum(math.log(expected[i, y]) for i, y in enumerate(LABELS)) / len(LABELS)
    assert MULTI_CLASS.loss(LOGITS, LABELS).item() == pytest.approx(loss, rel=1e-5)


def test_the_divergence_is_that_of_the_paper_and_0_for_the_target_itself():
    target = LOGITS.flip(0)
    expected = plain.distillation(LOGITS.double(), target.double(), weight=1, temperature=2.0)
    assert plain.relative_error(MULTI_CLASS.divergence(LOGITS, target, 2.0), expected) < 1e-5
    assert MULTI_CLASS.divergence(LOGITS, LOGITS).item() == 0


def test_agreement_is_the_share_of_images_whose_largest_score_is_at_the_same_place():
    reordered = LOGITS.clone()
    reordered[1] = -reordered[1]
    same = MULTI_CLASS.same(LOGITS, reordered)
    assert same.tolist() == [True, False, True, True, True, True]
    # whatever the batches
    parts = [MULTI_CLASS.agreements(LOGITS[i], reordered[i]) for i in ([0, 1], [2, 3, 4, 5])]
    assert agreement_of(sum(parts)).item() == pytest.approx(5 / 6)
    assert agreement_of(sum(parts)).equal(same.float().mean())


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ({}, [3, 0, 1]),
        ({"threshold": 0.6}, [3, 0, 1]),
        ({"threshold": 0.61}, []),
        ({"set_threshold": 0.3}, [3, 0]),
        ({"set_threshold": 0.7}, [3]),
        ({"set_threshold": 0.3, "threshold": 0.61}, []),
    ],
)
def test_a_rule_decides_which_classes_are_named(rule, named):
    assert MULTI_CLASS.decide([3, 0, 1], [0.6, 0.3, 0.1], DecisionRule(**rule)) == named


def test_a_set_has_a_column_of_its_classes():
    top = [Prediction("seal", 0.7), Prediction("otter", 0.2)]
    columns = MULTI_CLASS.columns(1, DecisionRule(set_threshold=0.1))
    cells = MULTI_CLASS.cells(Predicted(top, torch.zeros(3), {}), columns)
    assert cells == {"class": "seal", "probability": 0.7, "classes": "seal;otter"}
