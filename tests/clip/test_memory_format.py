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
from kdpl.clip.memory_format import memory_format_of

CONVOLUTIONAL = {
    "EfficientNet": ClipConfig("timm:test_efficientnet", "random", image_size=48),
    "ResNet of timm": ClipConfig("timm:test_resnet", "random", image_size=48),
    "ResNet of CLIP": ClipConfig("test-resnet", world.TAG),
}
KINDS = list(CONVOLUTIONAL)
LEFT_ALONE = {"ViT": "test_vit", "ConvNeXt": "test_convnext", "RepVGG": "repvgg_a0"}


def both(config):
    """A tower, and a copy of it in the usual format."""
    tower = load_image_clip(config).image_tower
    usual = deepcopy(tower)
    usual.use_memory_format(torch.contiguous_format)
    return tower, usual


def pixels(tower, n=5):
    size = tower.preprocessing.image_size
    return torch.randint(
        0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_gradients_are_the_same_up_to_rounding(kind):
    towers = both(CONVOLUTIONAL[kind])
    images, found = pixels(towers[0]), []
    for tower in towers:
        # in double precision, in which rounding is out of the way
        tower.requires_grad_(True).train().visual.double()
        features = tower(images)
        features.square().sum().backward()
        found.append(
            (features.detach(), {name: each.grad for name, each in tower.visual.named_parameters()})
        )
    (features, gradients), (usual, of_usual) = found
    assert relative_error(features, usual) < 1e-9
    largest = max(float(each.abs().max()) for each in of_usual.values())
    assert all(
        torch.allclose(each, of_usual[name], rtol=0, atol=1e-9 * largest)
        for name, each in gradients.items()
    )
    formats = [any(_is_last(each) for each in tower.visual.parameters()) for tower in towers]
    assert formats == [True, False]


def _is_last(weight):
    return (
        weight.ndim == 4
        and not weight.is_contiguous()
        and weight.is_contiguous(memory_format=torch.channels_last)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_features_are_the_same_up_to_rounding(kind):
    tower, usual = both(CONVOLUTIONAL[kind])
    images = pixels(tower)
    assert relative_error(tower.eval()(images), usual.eval()(images)) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_weights_have_the_same_names_values_and_digest(kind):
    states = [tower.visual.state_dict() for tower in both(CONVOLUTIONAL[kind])]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert fingerprint(states[0].items()) == fingerprint(states[1].items())


@pytest.mark.parametrize("kind", LEFT_ALONE)
def test_networks_that_gain_nothing_are_left_as_they_are(kind):
    assert (
        memory_format_of(timm.create_model(LEFT_ALONE[kind], num_classes=0))
        == torch.contiguous_format
    )


def test_a_network_in_which_a_library_would_corrupt_memory_is_left_as_it_is():
    network = timm.create_model("test_resnet", num_classes=0)
    assert memory_format_of(network) == torch.channels_last
    network.beside = nn.Conv2d(16, 8, 1, stride=2)
    assert memory_format_of(network) == torch.channels_last
    network.beside = nn.Conv2d(15, 8, 1, stride=2)
    assert memory_format_of(network) == torch.contiguous_format
