"""The methods under autocast, whose loss is close to that in float32, and trained parameters stay float32."""

import pytest
import torch
import world

from kdpl.clip import ClipConfig
from kdpl.prompts import PromptConfig
from kdpl.prompts.attributes import AttributePrompts
from kdpl.prompts.mmrl import RepresentationTokens
from kdpl.teacher import RegularizerWeights, TeacherPromptTuning

SIZE = PromptConfig(2, 2)


def make(kind):
    torch.manual_seed(0)

    def method(*common):
        if kind == "mmrl":
            return RepresentationTokens(*common, first_layer=2, width=8)
        return AttributePrompts(*common, attributes=["color"])

    clip = ClipConfig("test-teacher", world.TAG)
    sizes = {"vision_prompts": SIZE, "text_prompts": SIZE}
    weights = RegularizerWeights(0, 0, 0)
    return TeacherPromptTuning(clip, **sizes, method=method, regularizers=weights)


@pytest.mark.parametrize("kind", ["atprompt", "mmrl"])
def test_a_step_under_autocast_has_nearly_the_loss_of_one_in_float32(kind, tmp_path):
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        module = make(kind)
        options = {"limit_train_batches": 1, "precision": precision}
        seen = world.fit(module, tmp_path / precision, **options)
        losses += seen.losses
        trained = [p for p in module.parameters() if p.requires_grad]
        assert {p.dtype for p in trained} == {torch.float32}
        assert {each.dtype for each in seen.gradients.values()} == {torch.float32}
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]
