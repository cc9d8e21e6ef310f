import math

import pytest
import torch
import world
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from plain import relative_error
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdpl.callbacks.averaging import GaussianPromptAveraging, gaussian_weights
from kdpl.errors import ConfigError


@pytest.mark.parametrize(("epochs", "mean", "std"), [(20, 15, 1), (20, 6, 10), (50, 30, 30), (50, 45, 5), (1, 1, 1)])
def test_weights_are_the_normal_density_and_sum_to_one(epochs, mean, std):
    weights = gaussian_weights(epochs, mean, std)
    density = torch.distributions.Normal(torch.tensor(mean).double(), torch.tensor(std).double())
    expected = density.log_prob(torch.arange(1, epochs + 1).double()).exp()
    assert math.fsum(weights) == pytest.approx(1, abs=1e-12)
    assert weights == pytest.approx((expected / expected.sum()).tolist(), rel=1e-12)


def test_the_largest_weight_is_that_of_the_epoch_at_the_mean_counted_from_one():
    weights = gaussian_weights(20, 15, 1)
    # by hand: 1 / (1 + 2 (e^-1/2 + e^-2 + e^-9/2 + e^-8 + e^-25/2) + terms below 1e-8)
    assert weights[14] == pytest.approx(0.398942, abs=1e-6)
    assert weights[13] == pytest.approx(weights[15])
    assert weights[15] == pytest.approx(0.398942 * math.exp(-0.5), abs=1e-6)


@pytest.mark.parametrize(
    ("mean", "std", "match"),
    [
        (15, 0.0, "standard deviation of the prompt averaging is 0.0.*above 0"),
        (15, -1.0, "standard deviation of the prompt averaging is -1.0.*above 0"),
        (500, 1, "around epoch 500 ± 1 has no weight in epochs 1 to 20"),
    ],
)
def test_weights_that_cannot_be_are_refused(mean, std, match):
    with world.refused(ConfigError, match):
        gaussian_weights(20, mean, std)


class Walk(LightningModule):
    """Two prompts that move on every step, and one parameter that is not trained."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.second = nn.Parameter(torch.tensor([[0.5]]))
        self.fixed = nn.Parameter(torch.tensor([3.0]), requires_grad=False)

    def configure_optimizers(self):
        return torch.optim.SGD([self.first, self.second], lr=0.1, momentum=0.9)

    def training_step(self, batch):
        return ((self.first - batch[0]) ** 2).sum() + (self.second * batch[0]).sin().sum()

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.tensor([1.0, 2.0, 4.0])))


def fit(folder, epochs, *callbacks, module=None, ckpt_path=None, **options):
    module, record = module or Walk(), world.Record()
    trainer = world.quiet_trainer(folder, epochs, callbacks=[record, *callbacks], **options)
    trainer.fit(module, ckpt_path=ckpt_path, weights_only=True)
    return module, record.epochs


def test_after_the_last_epoch_the_weighted_sum_replaces_the_prompts(tmp_path):
    averaging = GaussianPromptAveraging(mean=3, std=1.5)
    module, epochs = fit(tmp_path, 5, averaging)
    weights = gaussian_weights(5, 3, 1.5)
    for name in ("first", "second"):
        expected = sum(w * epoch[name].double() for w, epoch in zip(weights, epochs, strict=True))
        assert relative_error(getattr(module, name), expected) < 1e-6
        assert relative_error(getattr(module, name), epochs[4][name]) > 1e-2
    assert torch.equal(module.fixed, torch.tensor([3.0]))
    assert set(averaging.sums) == {"first", "second"}


def test_until_the_last_epoch_training_continues_from_the_prompts_themselves(tmp_path):
    _, averaged = fit(tmp_path, 4, GaussianPromptAveraging(2, 1))
    _, alone = fit(tmp_path, 4)
    assert all(torch.equal(x["first"], y["first"]) for x, y in zip(averaged, alone, strict=True))


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_resumed_run_ends_with_the_same_prompts(epochs, tmp_path):
    class Stop(Callback):
        def on_train_epoch_end(self, trainer, _):
            trainer.should_stop = trainer.current_epoch == epochs - 1

    whole, _ = fit(tmp_path, 4, GaussianPromptAveraging(3, 2))
    saved = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    fit(tmp_path, 4, Stop(), saved, GaussianPromptAveraging(3, 2), enable_checkpointing=True)
    resumed = Walk()
    resumed.first.data += 100  # a parameter that the checkpoint does not restore would show
    fit(tmp_path, 4, GaussianPromptAveraging(3, 2), module=resumed, ckpt_path=saved.last_model_path)
    assert torch.equal(resumed.first, whole.first)
    assert torch.equal(resumed.second, whole.second)


@pytest.mark.parametrize(("epochs", "match"), [(-1, "set trainer.max_epochs"), (3, "no weight in epochs 1 to 3")])
def test_settings_that_cannot_be_averaged_with_are_refused_before_the_first_step(epochs, match, tmp_path):
    module = Walk()
    with world.refused(ConfigError, match):
        fit(tmp_path, epochs, GaussianPromptAveraging(500, 1), module=module, max_steps=5)
    assert torch.equal(module.first, Walk().first)
