import pytest
import torch
import world
from plain import relative_error
from torch import nn

from kdpl.clip import ClipConfig, load_clip
from kdpl.towers import Frozen

MODELS = [name for name in world.CONFIGS if name.startswith(("test-teacher", "test-student"))]


@pytest.mark.parametrize("name", MODELS)
def test_image_features_are_those_of_the_plain_tower(name, clip_of, plain_of, images):
    assert relative_error(clip_of(name).image_tower(images), plain_of(name).image_features(images)) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_text_features_are_those_of_the_plain_tower(name, clip_of, plain_of):
    texts = ["a photo of a sea horse.", "crab", "an origami of two blue whales in a bathtub, seen from above"]
    clip = clip_of(name)
    assert relative_error(clip.text_tower(clip.tokenize(texts)), plain_of(name).text_features(texts)) < 1e-5


def test_uint8_and_float_images_are_the_same_images(clip_of, images):
    tower = clip_of("test-teacher").image_tower
    assert relative_error(tower(images.float() / 255), tower(images)) < 1e-6


def test_sizes_are_those_of_the_config(clip_of):
    clip = clip_of("test-teacher")
    assert (clip.image_tower.width, clip.image_tower.embed_dim, len(clip.image_tower.blocks)) == (48, 24, 3)
    assert (clip.text_tower.width, clip.text_tower.context_length, len(clip.text_tower.blocks)) == (40, 77, 4)


def test_towers_stay_in_evaluation_mode_and_ask_for_no_gradient():
    clip = load_clip(ClipConfig("test-teacher", world.TAG))
    for tower in (clip.image_tower, clip.text_tower):
        tower.train()
        nn.Sequential(tower).train()
        assert not [module for module in tower.modules() if module.training]
        assert not [parameter for parameter in tower.parameters() if parameter.requires_grad]


def test_gradients_flow_through_a_frozen_tower_to_what_enters_it(clip_of, images):
    pixels = (images.float() / 255).requires_grad_()
    clip_of("test-teacher").image_tower(pixels).sum().backward()
    assert pixels.grad.abs().min(dim=0).values.max() > 0


class TestFrozen:
    def test_what_is_frozen_is_no_part_of_the_owners_state(self):
        owner = nn.Sequential(nn.Linear(2, 2), Frozen(nn.Linear(3, 3)))
        assert set(owner.state_dict()) == {"0.weight", "0.bias"}
        assert len(list(owner.parameters())) == 2
        assert not [p for p in owner[1].module.parameters() if p.requires_grad]

    def test_what_is_frozen_moves_with_its_owner_and_stays_in_evaluation_mode(self):
        owner = nn.Sequential(Frozen(nn.Linear(3, 3)))
        owner.to(torch.float64)
        owner.train()
        assert owner[0].module.weight.dtype == torch.float64
        assert not owner[0].module.training
        assert owner.to("meta")[0].module.weight.device.type == "meta"
