"""Convolutional towers in channels last, against the same towers in the usual format."""

from copy import deepcopy

import pytest
import timm
import torch
import world
from plain import relative_error
from torch import nn

from kdpl.clip import ClipConfig, load_image_clip
from kdpl.clip.loading import fingerprint
from kdpl.clip.towers.image import memory_format_of

CONVOLUTIONAL = {
    "EfficientNet": ClipConfig("timm:test_efficientnet", "random", image_size=48),
    "ResNet of timm": ClipConfig("timm:test_resnet", "random", image_size=48),
    "ResNet of CLIP": ClipConfig("test-resnet", world.TAG),
}


def both(config):
    """A tower, and a copy of it in the usual format."""
    tower = load_image_clip(config).image_tower
    usual = deepcopy(tower)
    usual.use_memory_format(torch.contiguous_format)
    return tower, usual


def pixels(tower, n=5):
    size = tower.preprocessing.image_size
    return world.images_of(torch.arange(n), seed=1, size=size)


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
def test_features_and_gradients_are_the_same_up_to_rounding(kind):
    towers = both(CONVOLUTIONAL[kind])
    state, usual_state = (tower.visual.state_dict() for tower in towers)
    assert all(torch.equal(tensor, usual_state[name]) for name, tensor in state.items())
    assert fingerprint(state.items()) == fingerprint(usual_state.items())
    images, results = pixels(towers[0]), []
    for tower in towers:
        # in double precision, in which rounding is out of the way
        tower.requires_grad_(True).train().visual.double()
        features = tower(images)
        features.square().sum().backward()
        gradients = [p.grad.flatten() for p in tower.visual.parameters()]
        results.append((features.detach(), torch.cat(gradients)))
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-9
    formats = [any(_is_last(weight) for weight in tower.visual.parameters()) for tower in towers]
    assert formats == [True, False]


def _is_last(weight):
    return (
        weight.ndim == 4
        and not weight.is_contiguous()
        and weight.is_contiguous(memory_format=torch.channels_last)
    )


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
