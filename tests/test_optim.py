import plain
import pytest
import torch
import world
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdpl.optim import OptimConfig, build_optimizer

# by hand from lr/2 · (1 + cos(π (e − 1) / 12)) with lr 0.005
TABLE = {0: 1e-5, 1: 0.005, 2: 0.0049148, 3: 0.0046651, 7: 0.0025, 11: 0.00033494}


class Quadratic(LightningModule):
    """Two parameters of which one is frozen, trained three steps an epoch; notes the rate of each step."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.trained = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.rates = []

    def configure_optimizers(self):
        return build_optimizer(self.parameters(), self.config, self.trainer.max_epochs)

    def training_step(self, batch):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return (batch[0].mean() * self.trained**2).sum()

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.tensor([1.0, 2.0, 3.0])))


def test_a_fit_steps_the_schedule_once_an_epoch_and_sgd_is_the_plain_one(tmp_path):
    module = Quadratic(OptimConfig())
    exact = module.trained.detach().double().requires_grad_()
    world.quiet_trainer(tmp_path, max_epochs=12).fit(module)
    optimizer = plain.PlainSGD([exact], momentum=0.9, weight_decay=5e-4)
    expected = [plain.learning_rate(epoch, 12, 0.005) for epoch in range(12)]
    for rate in expected:
        for factor in (1.0, 2.0, 3.0):
            optimizer.step((factor * exact**2).sum(), rate)
    assert plain.relative_error(module.trained, exact) < 1e-5
    assert torch.equal(module.frozen, torch.ones(2))
    assert module.rates == pytest.approx([rate for rate in expected for _ in range(3)], rel=1e-9)
    for epoch, rate in TABLE.items():
        assert expected[epoch] == pytest.approx(rate, rel=1e-4)


def test_adamw_has_the_same_schedule_and_sees_trained_parameters_alone():
    module = Quadratic(OptimConfig())
    config = OptimConfig(optimizer="adamw", lr=0.001, weight_decay=0.01)
    built = build_optimizer(module.parameters(), config, 10)
    optimizer, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
    assert isinstance(optimizer, torch.optim.AdamW)
    (group,) = optimizer.param_groups
    assert [p is module.trained for p in group["params"]] == [True]
    assert group["weight_decay"] == 0.01
    for epoch in range(10):
        assert group["lr"] == pytest.approx(plain.learning_rate(epoch, 10, 0.001), rel=1e-9)
        optimizer.step()
        schedule.step()
