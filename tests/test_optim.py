import pytest
import torch
from torch import nn

from kdpl.errors import ConfigError
from kdpl.optim import OptimConfig, build_optimizer

# by hand from lr/2 · (1 + cos(π (e − 1) / 12)) with lr 0.005
TABLE = {0: 1e-5, 1: 0.005, 2: 0.0049148, 3: 0.0046651, 7: 0.0025, 11: 0.00033494}


def build(config):
    """The optimiser of a layer and a frozen parameter for 12 epochs, and its rates in each of them."""
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    built = build_optimizer([*nn.Linear(3, 2).parameters(), frozen], config, 12, None)
    optimizer, schedule, rates = built["optimizer"], built["lr_scheduler"], []
    for _ in range(12):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule["scheduler"].step()
    return optimizer, rates, schedule["interval"]


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_both_optimizers_have_the_published_schedule_and_trained_parameters_alone(name, kind):
    optimizer, rates, interval = build(OptimConfig(name, weight_decay=0.01))
    assert isinstance(optimizer, kind)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 2
    assert group["weight_decay"] == 0.01
    assert interval == "epoch"
    for epoch, rate in TABLE.items():
        assert rates[epoch] == [pytest.approx(rate, rel=1e-4)]


def test_vectors_need_not_decay():
    optimizer, *_ = build(OptimConfig("adamw", weight_decay=0.1, decay_vectors=False))
    matrices, vectors = optimizer.param_groups
    assert [group["weight_decay"] for group in (matrices, vectors)] == [0.1, 0.0]
    assert [p.ndim for group in (matrices, vectors) for p in group["params"]] == [2, 1]


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [({}, None), ({"lr": 0.0}, 3), ({"warmup_lr": -1.0}, 3), ({"warmup_steps": -1}, 3)],
)
def test_settings_without_a_schedule_are_refused(settings, epochs):
    with pytest.raises(ConfigError, match="max_epochs" if epochs is None else r"optim\.lr"):
        build_optimizer([], OptimConfig(**settings), epochs, None)
