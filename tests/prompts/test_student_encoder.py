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


def test_the_projector_is_computed_in_float32_under_autocast():
    torch.manual_seed(0)
    projector, features = Projector(20, 24).eval(), torch.randn(6, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        projected = projector(features.bfloat16())
    assert torch.equal(projected, projector(features.bfloat16().float()))


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
    prompts = encoder.prompts and encoder.prompts.tokens.detach().double()
    projector = PlainProjector(encoder.projector.state_dict())
    expected = normalized(projector(plain.image_features(images, prompts), training=False))
    assert relative_error(encoder(images), expected) < 1e-5

    sizes = {"prompt_length": 2 if depth else 0, "prompt_depth": depth, "projector": True}
    settings = EncoderSettings(
        image_config=tower.config, preprocessing=tower.preprocessing, **sizes
    )
    tensors = encoder_tensors(encoder)
    assert not [name for name in tensors if name.endswith(".proj")]
    read = read_encoder(settings, tensors, 24, "model.safetensors", "").eval()
    assert read(images).equal(encoder(images))
