from copy import deepcopy

import pytest
import torch
import world
from plain import PlainClip, PlainProjector, normalized, relative_error

from kdpl.prompts.projector import Projector
from kdpl.prompts.student_encoder import (
    EncoderSettings,
    StudentEncoder,
    encoder_tensors,
    read_encoder,
)

FEATURES = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))


def test_projection_gradients_and_running_statistics_are_the_plain_ones():
    torch.manual_seed(0)  # some weights nearly cancel a gradient, whose rounding is then large
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


def require_plain(encoder, plain, images):
    prompts = encoder.prompts and encoder.prompts.tokens.detach().double()
    projector = PlainProjector(encoder.projector.state_dict())
    expected = normalized(projector(plain.image_features(images, prompts), training=False))
    assert relative_error(encoder(images), expected) < 1e-5


@pytest.mark.parametrize("depth", [0, 4])
def test_the_encoder_is_tower_prompts_projector_norm(depth, clip_of, plain_of, images):
    encoder = StudentEncoder(clip_of("test-student").image_tower, 2, depth, 24).eval()
    require_plain(world.disturbed(encoder, 1), plain_of("test-student"), images)


@pytest.mark.parametrize("depth", [0, 4])
def test_without_the_towers_projection_the_projector_reads_what_enters_it(depth, clip_of, images):
    name, tower = "test-student", deepcopy(clip_of("test-student").image_tower)
    before, narrow = tower.pooled(images), tower.embed_dim
    tower.drop_projection()
    assert tower.pooled(images).equal(before)
    assert tower.embed_dim == before.shape[1] != narrow
    encoder = world.disturbed(StudentEncoder(tower, 2, depth, 24).eval(), 1)

    identity = torch.eye(tower.embed_dim)
    plain = PlainClip({**world.weights(name), "visual.proj": identity}, world.CONFIGS[name])
    require_plain(encoder, plain, images)

    sizes = {"prompt_length": 2 if depth else 0, "prompt_depth": depth, "projector": True}
    settings = EncoderSettings(
        image_config=tower.config, preprocessing=tower.preprocessing, **sizes
    )
    tensors = encoder_tensors(encoder)
    assert not [name for name in tensors if name.endswith(".proj")]
    read = read_encoder(settings, tensors, 24, "model.safetensors", "").eval()
    assert read(images).equal(encoder(images))
