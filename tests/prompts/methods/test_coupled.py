"""Visual prompts that are mapped from the text prompts."""

import pytest
import torch
import world
from plain import backward, normalized, relative_error

from kdpl.clip import ClipConfig, load_image_clip
from kdpl.errors import ConfigError
from kdpl.prompts import PromptConfig, prompt_method
from kdpl.prompts.coupled import CoupledPrompts

NONE = PromptConfig(depth=0)


def coupled(clip, depth=3, length=2):
    torch.manual_seed(0)
    size = PromptConfig(length, depth)
    return world.disturbed(CoupledPrompts(size, size, None, clip), 0.5)


def text_layers(method):
    """All text prompts as one leaf, float64 [J, n, W]."""
    prompts = method.text_prompts
    return torch.cat([prompts.context[None], prompts.deep]).detach().double().requires_grad_()


def test_it_has_a_short_name():
    assert prompt_method("coupled") is CoupledPrompts


def test_without_prompts_it_has_no_parameters_and_no_settings(clip_of):
    method = CoupledPrompts(NONE, NONE, "a photo of a", clip_of("test-teacher"))
    assert method.text_is_fixed
    assert not list(method.parameters())
    assert not method.saved()
    assert method.settings() == {}


def test_features_come_back_bit_by_bit(clip_of, images):
    clip = clip_of("test-teacher")
    method = coupled(clip)
    sizes = method.vision_config, method.text_config, method.context
    restored = type(method).restore(*sizes, clip, method.saved())
    tower = clip.image_tower
    assert torch.equal(restored.encode_images(tower, images), method.encode_images(tower, images))
    names = [
        m.encode_names(world.NAMES, clip.text_tower, clip.tokenize) for m in (restored, method)
    ]
    assert torch.equal(*names)
    half = load_image_clip(ClipConfig("test-teacher", world.TAG))
    image_half = type(method).restore(*sizes, half, method.saved())
    assert torch.equal(image_half.encode_images(tower, images), method.encode_images(tower, images))
    assert [name for name, _ in image_half.named_parameters()] == ["vision_prompts.tokens"]


@pytest.mark.parametrize("depth", [1, 3])
def test_features_and_gradients_are_those_of_mapped_text_prompts(depth, clip_of, plain_of, images):
    clip, plain = clip_of("test-teacher"), plain_of("test-teacher")
    method = coupled(clip, depth)
    layers = text_layers(method)
    weights = [m.weight.detach().double().requires_grad_() for m in method.maps]
    biases = [m.bias.detach().double().requires_grad_() for m in method.maps]
    tokens = torch.stack([t @ w.T + b for t, w, b in zip(layers, weights, biases, strict=True)])

    assert relative_error(method.tokens, tokens) < 1e-6
    features = method.encode_images(clip.image_tower, images)
    expected = normalized(plain.image_features(images, tokens))
    assert relative_error(features, expected) < 1e-5
    backward(features, expected)
    assert relative_error(method.text_prompts.context.grad, layers.grad[0]) < 1e-5
    if depth > 1:
        assert relative_error(method.text_prompts.deep.grad, layers.grad[1:]) < 1e-5
    for layer, mapped in enumerate(method.maps):
        assert relative_error(mapped.weight.grad, weights[layer].grad) < 1e-5
        assert relative_error(mapped.bias.grad, biases[layer].grad) < 1e-5


def test_a_depth_that_only_one_tower_has_is_refused(clip_of):
    with world.refused(ConfigError, r"length 2 and depth 4 do not fit.*1 to 3"):
        coupled(clip_of("test-teacher"), depth=4)


def test_visual_prompts_stay_in_float32_under_half_precision(clip_of):
    method = coupled(clip_of("test-teacher"))
    before = method.tokens
    method.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method.tokens, before)
