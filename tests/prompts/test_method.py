"""The ways of prompting behind their interface: what they train, encode and save."""

import pytest
import torch
import world
from plain import normalized, prompt_text, relative_error

from kdpl.clip import ClipConfig, load_image_clip
from kdpl.errors import ConfigError
from kdpl.prompts import IndependentPrompts, PromptConfig, PromptMethod, prompt_method
from kdpl.prompts.attributes import AttributePrompts
from kdpl.prompts.coupled import CoupledPrompts
from kdpl.prompts.mmrl import RepresentationTokens

NONE, SIZE = PromptConfig(depth=0), PromptConfig(3, 2)
WORDS = "a photo of a"
TEXTS = [prompt_text(WORDS, name) for name in world.NAMES]


def names_of(method, clip):
    return method.encode_names(world.NAMES, clip.text_tower, clip.tokenize)


@pytest.mark.parametrize(
    "name", ["couple", "", ".", "os.system", "antigravity.fly", "pip.__main__.main"]
)
def test_another_name_is_refused_and_imports_no_script(name):
    with world.refused(ConfigError, r"use independent, .*or the dotted path"):
        prompt_method(name)


@pytest.mark.parametrize("kind", [PromptMethod, IndependentPrompts, CoupledPrompts])
def test_without_prompts_features_are_the_frozen_clips(kind, clip_of, plain_of, images):
    clip, plain = clip_of("test-teacher"), plain_of("test-teacher")
    method = kind(NONE, NONE, WORDS, clip)
    assert method.text_is_fixed
    assert not list(method.parameters())
    assert method.saved() == method.settings() == {}
    features = method.encode_images(clip.image_tower, images)
    assert relative_error(features, normalized(plain.image_features(images))) < 1e-5
    expected = normalized(plain.text_features(TEXTS))
    assert relative_error(names_of(method, clip), expected) < 1e-5


def test_names_are_encoded_without_gradients_and_autocast(clip_of):
    clip = clip_of("test-teacher")
    method = world.disturbed(IndependentPrompts(SIZE, SIZE, WORDS, clip), 0.5)
    assert not method.text_is_fixed
    names = names_of(method, clip)
    assert not names.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(names_of(method, clip), names)


METHODS = {
    IndependentPrompts: {},
    CoupledPrompts: {},
    AttributePrompts: {"attributes": ["pattern", "color"]},
    RepresentationTokens: {
        "first_layer": 2,
        "width": 7,
        "share": 0.6,
        "weight": 1.5,
        "combine": True,
    },
}


@pytest.mark.parametrize("kind", METHODS)
def test_a_method_comes_back_bit_by_bit_from_what_it_saved(kind, clip_of, images):
    clip, settings = clip_of("test-teacher"), METHODS[kind]
    torch.manual_seed(0)
    method = world.disturbed(kind(SIZE, SIZE, WORDS, clip, **settings), 0.3)
    assert method.settings() == settings
    saved = method.saved(), method.settings()
    restored = kind.restore(SIZE, SIZE, WORDS, clip, *saved)
    assert torch.equal(names_of(restored, clip), names_of(method, clip))
    # the image half of the CLIP is enough for images
    half = load_image_clip(ClipConfig("test-teacher", world.TAG))
    image_half = kind.restore(SIZE, SIZE, WORDS, half, *saved)
    expected = method.encode_images(clip.image_tower, images)
    for again in (restored, image_half):
        assert torch.equal(again.encode_images(clip.image_tower, images), expected)
    if kind is not RepresentationTokens:
        assert [name for name, _ in image_half.named_parameters()] == ["vision_prompts.tokens"]


class Scaled(PromptMethod):
    """A method with a setting that the tests choose, kept under its name or not."""

    def __init__(self, vision, text, context, clip, scale=1.0, **kept):
        super().__init__(vision, text, context, clip)
        vars(self).update(kept or {"scale": scale})


def test_further_arguments_are_saved_and_restored(clip_of):
    clip = clip_of("test-teacher")
    saved = Scaled(NONE, NONE, WORDS, clip, scale=3.0).settings()
    assert saved == {"scale": 3.0}
    assert Scaled.restore(NONE, NONE, WORDS, clip, {}, saved).scale == 3.0
    with pytest.raises(TypeError):
        IndependentPrompts.restore(NONE, NONE, WORDS, clip, {}, saved)


@pytest.mark.parametrize("kept", [{"other": 1.0}, {"scale": object()}])
def test_settings_that_could_not_be_saved_are_refused(kept, clip_of):
    with world.refused(ConfigError, "prompt method Scaled cannot be saved"):
        Scaled(NONE, NONE, WORDS, clip_of("test-teacher"), **kept).settings()


def test_coupled_prompts_of_a_depth_that_one_tower_lacks_are_refused(clip_of):
    size = PromptConfig(2, 4)
    with world.refused(ConfigError, "length 2 and depth 4"):
        CoupledPrompts(size, size, None, clip_of("test-teacher"))


def test_coupled_visual_prompts_stay_in_float32_under_half_precision(clip_of):
    method = world.disturbed(CoupledPrompts(SIZE, SIZE, None, clip_of("test-teacher")), 0.5)
    before = method.tokens
    method.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method.tokens, before)
