import math

import pytest
import torch
import world
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from plain import relative_error
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdpl.callbacks import GaussianPromptAveraging
from kdpl.callbacks.averaging import gaussian_weights
from kdpl.errors import ConfigError


class TestWeights:
    @pytest.mark.parametrize(
        ("epochs", "mean", "std"), [(20, 15, 1), (20, 6, 10), (50, 30, 30), (50, 45, 5), (1, 1, 1)]
    )
    def test_they_are_the_normal_density_and_sum_to_one(self, epochs, mean, std):
        weights = gaussian_weights(epochs, mean, std)
        density = torch.distributions.Normal(torch.tensor(mean).double(), torch.tensor(std).double())
        expected = density.log_prob(torch.arange(1, epochs + 1).double()).exp()
        assert math.fsum(weights) == pytest.approx(1, abs=1e-12)
        assert weights == pytest.approx((expected / expected.sum()).tolist(), rel=1e-12)

    def test_the_largest_weight_is_that_of_the_epoch_at_the_mean_counted_from_one(self):
        weights = gaussian_weights(20, 15, 1)
        # by hand: 1 / (1 + 2 (e^-1/2 + e^-2 + e^-9/2 + e^-8 + e^-25/2) + terms below 1e-8)
        assert weights[14] == pytest.approx(0.398942, abs=1e-6)
        assert weights[13] == pytest.approx(weights[15])
        assert weights[15] == pytest.approx(0.398942 * math.exp(-0.5), abs=1e-6)

    @pytest.mark.parametrize("std", [0.0, -1.0])
    def test_a_standard_deviation_of_zero_or_less_is_refused(self, std):
        with pytest.raises(ConfigError, match=f"standard deviation of the prompt averaging is {std}.*above 0") as error:
            gaussian_weights(20, 15, std)
        assert world.one_sentence(error)

    def test_a_mean_from_which_no_epoch_has_weight_is_refused(self):
        with pytest.raises(ConfigError, match="around epoch 500 ± 1 has no weight in epochs 1 to 20") as error:
            gaussian_weights(20, 500, 1)
        assert world.one_sentence(error)


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


class Record(Callback):
    """Keeps the trained parameters as the last step of each epoch leaves them."""

    def __init__(self):
        self.epochs = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.epochs[trainer.current_epoch] = {k: p.detach().clone() for k, p in pl_module.named_parameters()}


def test_after_the_last_epoch_the_weighted_sum_takes_the_prompts_place(tmp_path):
    module, record = Walk(), Record()
    averaging = GaussianPromptAveraging(mean=3, std=1.5)
    world.quiet_trainer(tmp_path, max_epochs=5, callbacks=[record, averaging]).fit(module)
    weights = gaussian_weights(5, 3, 1.5)
    assert sorted(record.epochs) == [0, 1, 2, 3, 4]
    for name in ("first", "second"):
        expected = sum(w * record.epochs[e][name].double() for e, w in enumerate(weights))
        assert relative_error(getattr(module, name), expected) < 1e-6
        assert relative_error(getattr(module, name), record.epochs[4][name]) > 1e-2
    assert torch.equal(module.fixed, torch.tensor([3.0]))
    assert set(averaging.sums) == {"first", "second"}


def test_before_the_last_epoch_training_goes_on_from_the_prompts_themselves(tmp_path):
    averaged, alone = Record(), Record()
    world.quiet_trainer(tmp_path, 4, callbacks=[averaged, GaussianPromptAveraging(2, 1)]).fit(Walk())
    world.quiet_trainer(tmp_path, 4, callbacks=[alone]).fit(Walk())
    for epoch in range(4):
        assert torch.equal(averaged.epochs[epoch]["first"], alone.epochs[epoch]["first"])


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_run_that_is_resumed_ends_with_the_same_prompts(cut, tmp_path):
    whole, resumed = Walk(), Walk()
    world.quiet_trainer(tmp_path, 4, callbacks=[GaussianPromptAveraging(3, 2)]).fit(whole)

    class Stop(Callback):
        def on_train_epoch_end(self, trainer, _):
            trainer.should_stop = trainer.current_epoch == cut - 1

    saved = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    callbacks = [Stop(), saved, GaussianPromptAveraging(3, 2)]
    world.quiet_trainer(tmp_path, 4, callbacks=callbacks, enable_checkpointing=True).fit(Walk())
    with torch.no_grad():
        resumed.first += 100  # what the checkpoint does not bring back would show
    trainer = world.quiet_trainer(tmp_path, 4, callbacks=[GaussianPromptAveraging(3, 2)])
    trainer.fit(resumed, ckpt_path=saved.last_model_path, weights_only=True)
    assert torch.equal(resumed.first, whole.first)
    assert torch.equal(resumed.second, whole.second)


@pytest.mark.parametrize(("epochs", "match"), [(-1, "set trainer.max_epochs"), (3, "no weight in epochs 1 to 3")])
def test_what_cannot_be_averaged_is_refused_before_the_first_step(epochs, match, tmp_path):
    record = Record()
    trainer = world.quiet_trainer(tmp_path, epochs, max_steps=5, callbacks=[record, GaussianPromptAveraging(500, 1)])
    with pytest.raises(ConfigError, match=match):
        trainer.fit(Walk())
    assert not record.epochs
