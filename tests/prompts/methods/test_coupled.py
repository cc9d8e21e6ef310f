"""Visual prompts that are mapped from the text prompts."""

import pytest
import torch
import world
from plain import backward, normalized, relative_error

from kdpl.errors import ConfigError
from kdpl.prompts import PromptConfig, prompt_method
from kdpl.prompts.coupled import CoupledPrompts


def coupled(clip, depth=3, length=2):
    torch.manual_seed(0)
    size = PromptConfig(length, depth)
    return world.disturbed(CoupledPrompts(size, size, None, clip), 0.5)


def test_it_has_a_short_name():
    assert prompt_method("coupled") is CoupledPrompts


@pytest.mark.parametrize("depth", [1, 3])
def test_features_and_gradients_are_those_of_mapped_text_prompts(depth, clip_of, plain_of, images):
    clip, plain = clip_of("test-teacher"), plain_of("test-teacher")
    method = coupled(clip, depth)
    prompts = method.text_prompts
    weights, biases = [m.weight for m in method.maps], [m.bias for m in method.maps]
    layers = torch.cat([prompts.context[None], prompts.deep])
    layers, *maps = (t.detach().double().requires_grad_() for t in (layers, *weights, *biases))
    weights, biases = maps[:depth], maps[depth:]
    tokens = torch.stack([t @ w.T + b for t, w, b in zip(layers, weights, biases, strict=True)])

    assert relative_error(method.tokens, tokens) < 1e-6
    features = method.encode_images(clip.image_tower, images)
    expected = normalized(plain.image_features(images, tokens))
    assert relative_error(features, expected) < 1e-5
    backward(features, expected)
    assert relative_error(prompts.context.grad, layers.grad[0]) < 1e-5
    if depth > 1:
        assert relative_error(prompts.deep.grad, layers.grad[1:]) < 1e-5
    for layer, mapped in enumerate(method.maps):
        assert relative_error(mapped.weight.grad, weights[layer].grad) < 1e-5
        assert relative_error(mapped.bias.grad, biases[layer].grad) < 1e-5


def test_a_depth_that_only_one_tower_has_is_refused(clip_of):
    with world.refused(ConfigError, "length 2 and depth 4"):
        coupled(clip_of("test-teacher"), depth=4)


def test_visual_prompts_stay_in_float32_under_half_precision(clip_of):
    method = coupled(clip_of("test-teacher"))
    before = method.tokens
    method.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method.tokens, before)
