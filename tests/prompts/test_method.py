"""The ways of prompting behind their interface: what they train, encode and save."""

import pytest
import torch
import world
from plain import normalized, prompt_text, relative_error

from kdpl.clip import ClipConfig, load_image_clip
from kdpl.errors import ConfigError
from kdpl.prompts import (
    IndependentPrompts,
    PromptConfig,
    PromptMethod,
    prompt_method,
)

NONE = PromptConfig(depth=0)
WORDS = "a photo of a"


def independent(clip, vision=(3, 2), text=(4, 3), context=WORDS):
    torch.manual_seed(0)
    return world.disturbed(
        IndependentPrompts(PromptConfig(*vision), PromptConfig(*text), context, clip), 0.5
    )


def text_layers(method):
    """All text prompts as one leaf, float64 [J, n, W]."""
    prompts = method.text_prompts
    return torch.cat([prompts.context[None], prompts.deep]).detach().double().requires_grad_()


@pytest.mark.parametrize(
    "name",
    [
        "couple",
        "",
        ".",
        "os.system",
        "no_such_package.Prompts",
        "antigravity.fly",
        "pip.__main__.main",
    ],
)
def test_another_name_is_refused_and_imports_no_script(name):
    with world.refused(ConfigError, r"use independent, .*or the dotted path"):
        prompt_method(name)


class TestEncoding:
    @pytest.mark.parametrize("kind", [PromptMethod, IndependentPrompts])
    def test_without_prompts_features_are_the_frozen_clips(self, kind, clip_of, plain_of, images):
        clip, plain = clip_of("test-teacher"), plain_of("test-teacher")
        method = kind(NONE, NONE, WORDS, clip)
        assert method.text_is_fixed
        assert not list(method.parameters())
        assert not method.saved()
        features = method.encode_images(clip.image_tower, images)
        assert relative_error(features, normalized(plain.image_features(images))) < 1e-5
        expected = normalized(
            plain.text_features([prompt_text(WORDS, name) for name in world.NAMES])
        )
        assert (
            relative_error(
                method.encode_names(world.NAMES, clip.text_tower, clip.tokenize), expected
            )
            < 1e-5
        )

    def test_independent_prompts_in_both_towers(self, clip_of, plain_of, images):
        clip, plain = clip_of("test-teacher"), plain_of("test-teacher")
        method = independent(clip)
        assert not method.text_is_fixed
        tokens = method.vision_prompts.tokens.detach().double()
        features = method.encode_images(clip.image_tower, images)
        assert relative_error(features, normalized(plain.image_features(images, tokens))) < 1e-5
        expected = normalized(
            plain.text_features([prompt_text(WORDS, n) for n in world.NAMES], text_layers(method))
        )
        texts = method.arrange(world.NAMES, clip.text_tower, clip.tokenize)
        assert relative_error(method.encode_texts(clip.text_tower, texts), expected) < 1e-5
        names = method.encode_names(world.NAMES, clip.text_tower, clip.tokenize)
        assert relative_error(names, expected) < 1e-5
        assert not names.requires_grad
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(
                method.encode_names(world.NAMES, clip.text_tower, clip.tokenize), names
            )


class TestRestoring:
    def test_features_come_back_bit_by_bit(self, clip_of, images):
        clip = clip_of("test-teacher")
        method = independent(clip)
        sizes = method.vision_config, method.text_config, method.context
        restored = type(method).restore(*sizes, clip, method.saved())
        tower = clip.image_tower
        assert torch.equal(
            restored.encode_images(tower, images), method.encode_images(tower, images)
        )
        names = [
            m.encode_names(world.NAMES, clip.text_tower, clip.tokenize) for m in (restored, method)
        ]
        assert torch.equal(*names)
        half = load_image_clip(ClipConfig("test-teacher", world.TAG))
        image_half = type(method).restore(*sizes, half, method.saved())
        assert torch.equal(
            image_half.encode_images(tower, images), method.encode_images(tower, images)
        )
        assert [name for name, _ in image_half.named_parameters()] == ["vision_prompts.tokens"]


class Scaled(PromptMethod):
    """A method with a setting that the tests choose, kept under its name or not."""

    def __init__(self, vision, text, context, clip, scale=1.0, **kept):
        super().__init__(vision, text, context, clip)
        vars(self).update(kept or {"scale": scale})


class Passing(PromptMethod):
    """A method that takes its own setting first, and hands on the others."""

    def __init__(self, share=0.5, **common):
        super().__init__(**common)
        self.share = share


class TestSettings:
    def test_they_are_found_by_name_wherever_they_stand(self, clip_of):
        common = {"vision": NONE, "text": NONE, "context": WORDS, "clip": clip_of("test-teacher")}
        assert Passing(share=0.2, **common).settings() == {"share": 0.2}

    @pytest.mark.parametrize("kind", [PromptMethod, IndependentPrompts])
    def test_the_packages_own_methods_have_none(self, kind, clip_of):
        assert kind(NONE, NONE, WORDS, clip_of("test-teacher")).settings() == {}

    def test_further_arguments_are_saved_and_restored(self, clip_of):
        clip = clip_of("test-teacher")
        saved = Scaled(NONE, NONE, WORDS, clip, scale=3.0).settings()
        assert saved == {"scale": 3.0}
        assert Scaled.restore(NONE, NONE, WORDS, clip, {}, saved).scale == 3.0
        with pytest.raises(TypeError):
            IndependentPrompts.restore(NONE, NONE, WORDS, clip, {}, saved)

    @pytest.mark.parametrize("kept", [{"other": 1.0}, {"scale": object()}])
    def test_what_could_not_be_saved_is_refused(self, kept, clip_of):
        match = "settings of the prompt method Scaled cannot be saved .*: keep each as a number"
        with world.refused(ConfigError, match):
            Scaled(NONE, NONE, WORDS, clip_of("test-teacher"), **kept).settings()
