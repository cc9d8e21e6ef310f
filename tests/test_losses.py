import math

import plain
import pytest
import torch

from kdpl.losses import distillation_kl, feature_l1


def logits(seed, rows=5, columns=7):
    return 3 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
def test_a_divergence_and_its_gradient_are_the_plain_sum_over_images_and_classes(temperature):
    learned, exact = logits(1).requires_grad_(), logits(1).double().requires_grad_()
    target = logits(2)
    loss = distillation_kl(learned, target, temperature)
    expected = plain.distillation(exact, target.double(), weight=1, temperature=temperature)
    assert plain.relative_error(loss, expected) < 1e-5
    loss.backward()
    expected.backward()
    assert plain.relative_error(learned.grad, exact.grad) < 1e-5


def test_distillation_stays_finite_where_the_teacher_is_certain():
    certain = torch.tensor([[1000.0, 0.0, 0.0]])
    student = torch.zeros(1, 3, requires_grad=True)
    loss = distillation_kl(student, certain)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3) / 3)
    assert student.grad.isfinite().all()


def test_feature_l1_is_the_mean_over_all_entries():
    features = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 0.0]])
    frozen = torch.tensor([[0.5] * 3, [0.0] * 3])
    assert feature_l1(features, frozen).item() == pytest.approx(2.0 / 6)
