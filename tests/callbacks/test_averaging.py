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


def test_an_average_over_an_unknown_number_of_epochs_is_refused_before_the_first_step(tmp_path):
    none = PromptConfig(depth=0)
    clip, averaging = ClipConfig("test-student", world.TAG), AveragingConfig(mean=15, std=1)
    teacher = TeacherPromptTuning(
        clip, vision_prompts=PromptConfig(2, 1), text_prompts=none, averaging=averaging
    )
    with world.refused(ConfigError, "set trainer.max_epochs"):
        world.fit(teacher, tmp_path, -1, [world.NoStep()], max_steps=5)
