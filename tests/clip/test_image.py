"""Image towers: plain features, compilation and memory formats."""

import shutil
from copy import deepcopy

import pytest
import timm
import torch
import world
from plain import backward, relative_error
from torch import nn

from kdpl.clip import ClipConfig, load_clip, load_image_clip
from kdpl.clip.modules import fingerprint
from kdpl.clip.towers.image import memory_format_of
from kdpl.prompts import VisionPrompts


@pytest.mark.parametrize("name", world.CLIPS)
def test_features_are_those_of_the_plain_tower(name, clip_of, plain_of, images):
    expected = plain_of(name).image_features(images)
    for pixels in (images, images.float() / 255):
        assert relative_error(clip_of(name).image_tower(pixels), expected) < 1e-5


@pytest.mark.parametrize("name", world.CLIPS)
@pytest.mark.parametrize("layer", [0, -1])
def test_a_block_has_the_tokens_and_gradients_of_open_clips_forward(layer, name, clip_of, images):
    tower = clip_of(name).image_tower
    layer %= len(tower.blocks)
    ours, theirs = (tower.embed(images).detach().requires_grad_() for _ in range(2))
    tokens = tower.run_block(layer, ours)
    expected = tower.blocks[layer](theirs if layer else tower.visual.ln_pre(theirs))
    if layer > 0:  # the last block returns the class token alone
        expected = expected[:, :1]
    backward(tokens, expected)
    assert relative_error(tokens, expected) < 1e-6
    assert relative_error(ours.grad, theirs.grad) < 1e-6


def test_half_precision_does_not_round_the_statistics_that_images_are_normalised_by(images):
    tower = load_clip(ClipConfig("test-teacher", world.TAG)).image_tower
    expected = tower.pixels(images)
    assert torch.equal(tower.to(torch.bfloat16).pixels(images), expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_tower_gives_the_same_features_gradients_and_names(images):
    config = ClipConfig("test-teacher", world.TAG)
    tower, compiled = (load_clip(config).image_tower for _ in range(2))
    compiled.compile_parts()
    assert compiled.state_dict().keys() == tower.state_dict().keys()
    prompts, results = VisionPrompts(2, 2, tower), []
    for encoder in (tower, compiled):
        prompts.zero_grad()
        features = prompts(encoder, images)
        features.sum().backward()
        results.append((features, prompts.tokens.grad.clone()))
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-5


CONVOLUTIONAL = {
    "EfficientNet": ClipConfig("timm:test_efficientnet", "random", image_size=48),
    "ResNet of timm": ClipConfig("timm:test_resnet", "random", image_size=48),
    "ResNet of CLIP": ClipConfig("test-resnet", world.TAG),
}


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
def test_channels_last_changes_features_and_gradients_by_rounding_alone(kind):
    tower = load_image_clip(CONVOLUTIONAL[kind]).image_tower
    usual = deepcopy(tower)
    usual.use_memory_format(torch.contiguous_format)
    towers, size = (tower, usual), tower.preprocessing.image_size
    state, usual_state = (tower.visual.state_dict() for tower in towers)
    assert all(torch.equal(tensor, usual_state[name]) for name, tensor in state.items())
    assert fingerprint(state.items()) == fingerprint(usual_state.items())
    images, results = world.images_of(torch.arange(5), seed=1, size=size), []
    for tower in towers:
        # in double precision, in which rounding is out of the way
        tower.requires_grad_(True).train().visual.double()
        features = tower(images)
        features.square().sum().backward()
        gradients = [p.grad.flatten() for p in tower.visual.parameters()]
        results.append((features.detach(), torch.cat(gradients)))
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-9
    formats = [all(p.is_contiguous() for p in tower.visual.parameters()) for tower in towers]
    assert formats == [False, True]


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "repvgg_a0"])
def test_networks_that_gain_nothing_are_left_as_they_are(name):
    network = timm.create_model(name, num_classes=0)
    assert memory_format_of(network) == torch.contiguous_format


def test_a_network_in_which_a_library_would_corrupt_memory_is_left_as_it_is():
    network = timm.create_model("test_resnet", num_classes=0)
    assert memory_format_of(network) == torch.channels_last
    network.beside = nn.Conv2d(16, 8, 1, stride=2)
    assert memory_format_of(network) == torch.channels_last
    network.beside = nn.Conv2d(15, 8, 1, stride=2)
    assert memory_format_of(network) == torch.contiguous_format
