import math

import pytest
import torch

from kdpl.metrics import DomainAccuracy, harmonic_mean

# five classes, the first three of them base; each row's largest logits are chosen by hand
LOGITS = torch.tensor(
    [
        # base images
        [9.0, 1.0, 1.0, 1.0, 1.0],  # label 0: right everywhere
        [5.0, 1.0, 1.0, 9.0, 1.0],  # label 0: among base classes right, over all wrong
        [9.0, 1.0, 1.0, 1.0, 1.0],  # label 1: wrong everywhere
        [1.0, 1.0, 8.0, 1.0, 9.0],  # label 2: among base classes right, over all wrong
        # novel images
        [9.0, 1.0, 1.0, 5.0, 1.0],  # label 3: among novel classes right, over all wrong
        [1.0, 1.0, 1.0, 9.0, 1.0],  # label 4: wrong everywhere
        [1.0, 1.0, 1.0, 1.0, 9.0],  # label 4: right everywhere
    ]
)
LABELS = torch.tensor([0, 0, 1, 2, 3, 4, 4])
# over all 2/7; base 3/4; novel 2/3; HM = 2 · 3/4 · 2/3 / (3/4 + 2/3) = 1 / (17/12) = 12/17
BY_HAND = {"acc": 2 / 7, "base_acc": 3 / 4, "novel_acc": 2 / 3, "hm": 12 / 17}


def as_floats(values):
    return {key: value.item() for key, value in values.items()}


@pytest.mark.parametrize("sizes", [[7], [1] * 7, [4, 3], [0, 6, 1]])
def test_accuracies_are_those_by_hand_however_the_images_are_batched(sizes):
    metric = DomainAccuracy(num_base=3)
    for logits, labels in zip(LOGITS.split(sizes), LABELS.split(sizes), strict=True):
        metric.update(logits, labels)
    assert as_floats(metric.compute()) == pytest.approx(BY_HAND)


def test_without_a_split_there_is_one_accuracy():
    metric = DomainAccuracy()
    metric.update(LOGITS, LABELS)
    assert as_floats(metric.compute()) == pytest.approx({"acc": 2 / 7})


def test_a_split_without_images_is_not_a_number():
    metric = DomainAccuracy(num_base=3)
    metric.update(LOGITS[:4], LABELS[:4])
    values = as_floats(metric.compute())
    assert values["base_acc"] == pytest.approx(3 / 4)
    assert math.isnan(values["novel_acc"])
    assert math.isnan(values["hm"])


def test_harmonic_mean_by_hand():
    base, novel = torch.tensor([0.8696, 0.0, 1.0, 0.0]), torch.tensor([0.8073, 0.5, 1.0, 0.0])
    # the first is the published average: 86.96 / 80.73 / 83.73
    assert harmonic_mean(base, novel).tolist() == pytest.approx([0.8373, 0.0, 1.0, 0.0], abs=5e-5)
