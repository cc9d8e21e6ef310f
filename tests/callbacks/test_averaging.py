import math

import pytest
import torch
import world

from kdpl.callbacks.averaging import gaussian_weights
from kdpl.clip import ClipConfig
from kdpl.errors import ConfigError
from kdpl.prompts import PromptConfig
from kdpl.teacher import AveragingConfig, TeacherPromptTuning


@pytest.mark.parametrize(
    ("epochs", "mean", "std"), [(20, 15, 1), (20, 6, 10), (50, 45, 5), (1, 1, 1)]
)
def test_weights_are_the_normal_density_and_sum_to_one(epochs, mean, std):
    weights = gaussian_weights(epochs, mean, std)
    density = torch.distributions.Normal(torch.tensor(mean).double(), torch.tensor(std).double())
    expected = density.log_prob(torch.arange(1, epochs + 1).double()).exp()
    assert math.fsum(weights) == pytest.approx(1, abs=1e-12)
    assert weights == pytest.approx((expected / expected.sum()).tolist(), rel=1e-12)


@pytest.mark.parametrize(
    ("epochs", "mean", "match"),
    [
        (20, 500, "around epoch 500 ± 1 has no weight in epochs 1 to 20"),
        (-1, 15, "set trainer.max_epochs"),
        (20, 15, "EarlyStopping or trainer.max_steps may end the training before"),
    ],
)
def test_an_average_that_cannot_be_is_refused_before_the_first_step(epochs, mean, match, tmp_path):
    none = PromptConfig(depth=0)
    clip, averaging = ClipConfig("test-student", world.TAG), AveragingConfig(mean, std=1)
    teacher = TeacherPromptTuning(
        clip, vision_prompts=PromptConfig(2, 1), text_prompts=none, averaging=averaging
    )
    with world.refused(ConfigError, match):
        world.fit(teacher, tmp_path, epochs, [world.NoStep()], max_steps=5)
