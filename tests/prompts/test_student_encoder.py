import pytest
import torch
import world
from plain import PlainProjector, normalized, relative_error

from kdpl.prompts.projector import Projector
from kdpl.prompts.student_encoder import StudentEncoder

FEATURES = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))


def test_projection_gradients_and_running_statistics_are_the_plain_ones():
    projector = world.disturbed(Projector(20, 24), 0.3)
    plain = PlainProjector(projector.state_dict())
    leaves = {k: v.requires_grad_() for k, v in plain.parameters.items() if "running" not in k}
    for step in range(3):
        batch = FEATURES + step
        projected, expected = projector(batch), plain(batch.double(), training=True)
        assert relative_error(projected, expected) < 1e-5
    projected.square().sum().backward()
    expected.square().sum().backward()
    gradients = {k: p.grad for k, p in projector.named_parameters()}
    assert gradients.keys() == leaves.keys()
    for name, gradient in gradients.items():
        if name != "layers.0.bias":  # batch norm cancels it: its gradient is rounding alone
            assert relative_error(gradient, leaves[name].grad) < 1e-5, name
    for name in ("layers.1.running_mean", "layers.1.running_var"):
        assert relative_error(projector.state_dict()[name], plain.parameters[name]) < 1e-5
    projector.eval()
    assert relative_error(projector(FEATURES), plain(FEATURES.double(), training=False)) < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(projector(FEATURES.bfloat16()), projector(FEATURES.bfloat16().float()))


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_the_encoder_is_tower_prompts_projector_norm(depth, clip_of, plain_of, images):
    plain = plain_of("test-student")
    encoder = StudentEncoder(clip_of("test-student").image_tower, 2, depth, 24).eval()
    world.disturbed(encoder, 1)
    prompts = encoder.prompts.tokens.detach().double() if depth else None
    projector = PlainProjector(encoder.projector.state_dict())
    expected = normalized(projector(plain.image_features(images, prompts), training=False))
    assert relative_error(encoder(images), expected) < 1e-5
