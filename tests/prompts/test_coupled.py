import copy

import pytest
import torch
import world
from plain import relative_error

from kdpl.errors import ConfigError
from kdpl.prompts import CoupledPrompts, TextPrompts


def make(clip, depth=3, length=2):
    torch.manual_seed(0)
    text = TextPrompts(length, depth, None, clip.text_tower, clip.tokenize)
    with torch.no_grad():
        for parameter in text.parameters():
            parameter += torch.randn(parameter.shape)
    return text, CoupledPrompts(text, clip.image_tower)


@pytest.mark.parametrize("depth", [1, 3])
def test_features_and_gradients_are_those_of_mapped_text_prompts(depth, clip_of, plain_of, images):
    clip, plain = clip_of("test-teacher"), plain_of("test-teacher")
    text, prompts = make(clip, depth)
    layers = torch.cat([text.context[None], text.deep]).detach().double().requires_grad_()
    weights = [m.weight.detach().double().requires_grad_() for m in prompts.maps]
    biases = [m.bias.detach().double().requires_grad_() for m in prompts.maps]
    tokens = torch.stack([t @ w.T + b for t, w, b in zip(layers, weights, biases, strict=True)])
    direction = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))

    assert relative_error(prompts.tokens, tokens) < 1e-6
    features, expected = prompts(clip.image_tower, images), plain.image_features(images, tokens)
    assert relative_error(features, expected) < 1e-5
    (features * direction).sum().backward()
    (expected * direction).sum().backward()
    assert relative_error(text.context.grad, layers.grad[0]) < 1e-5
    if depth > 1:
        assert relative_error(text.deep.grad, layers.grad[1:]) < 1e-5
    for layer, mapped in enumerate(prompts.maps):
        assert relative_error(mapped.weight.grad, weights[layer].grad) < 1e-5
        assert relative_error(mapped.bias.grad, biases[layer].grad) < 1e-5


def test_the_maps_alone_are_its_parameters_and_state(clip_of):
    _, prompts = make(clip_of("test-teacher"))
    names = {f"maps.{layer}.{name}" for layer in range(3) for name in ("weight", "bias")}
    assert {name for name, _ in prompts.named_parameters()} == set(prompts.state_dict()) == names
    assert [m.weight.shape for m in prompts.maps] == [(48, 40)] * 3
    assert all(0 < m.weight.abs().max() <= 40**-0.5 for m in prompts.maps), "torch's own start"


def test_the_text_prompts_are_followed_and_a_copy_follows_its_own(clip_of):
    text, prompts = make(clip_of("test-teacher"))
    owner = torch.nn.ModuleDict({"text": text, "vision": prompts})
    other = copy.deepcopy(owner)
    before = prompts.tokens.detach().clone()
    with torch.no_grad():
        text.context += 1
    assert not torch.equal(prompts.tokens[0], before[0])
    assert torch.equal(prompts.tokens[1:], before[1:])
    assert torch.equal(other["vision"].tokens, before)


def test_tokens_are_the_same_in_float32_under_half_precision(clip_of):
    text, prompts = make(clip_of("test-teacher"))
    before = prompts.tokens
    torch.nn.ModuleList([text, prompts]).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = prompts.tokens
    assert tokens.dtype == torch.float32
    assert torch.equal(tokens, before)


def test_more_layers_than_the_image_tower_has_are_refused(clip_of):
    with pytest.raises(ConfigError, match=r"length 2 and depth 4 do not fit.*1 to 3") as error:
        make(clip_of("test-teacher"), depth=4)
    assert world.one_sentence(error)
