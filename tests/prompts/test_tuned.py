from dataclasses import replace

import pytest
import torch
import world
from plain import normalized, prompt_text, relative_error

import kdpl.clip.loading
from kdpl.clip import ClipIdentity, Preprocessing
from kdpl.errors import ArtifactError, WeightsError
from kdpl.prompts import PromptConfig
from kdpl.prompts.tuned import KIND, VERSION, TunedPrompts
from kdpl.runtime.artifacts import read_tensors, write_tensors

CLIP = ClipIdentity("some-clip", "some-tag", True, "0123456789abcdef" * 2)
IMAGES = Preprocessing(32, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
NONE = PromptConfig(depth=0)
WORDS = "a photo of a"


def tensors(seed=0, vision_width=48, text_width=40):
    draw = torch.Generator().manual_seed(seed)
    return {
        "vision_prompts.tokens": torch.randn(2, 3, vision_width, generator=draw),
        "text_prompts.context": torch.randn(4, text_width, generator=draw),
        "text_prompts.deep": torch.randn(2, 4, text_width, generator=draw),
    }


def tuned(**changes):
    fields = {
        "tensors": tensors(),
        "method": "independent",
        "vision": PromptConfig(3, 2),
        "text": PromptConfig(4, 3),
        "context": WORDS,
        "clip": CLIP,
        "text_fingerprint": "f" * 32,
        "logit_scale": 30.0,
        "preprocessing": IMAGES,
    }
    return TunedPrompts(**{**fields, **changes})


@pytest.mark.parametrize("changes", [{}, {"context": None}, {"tensors": {}, "vision": NONE, "text": NONE}])
def test_prompts_come_back_as_they_were_saved(changes, tmp_path):
    written = tuned(**changes)
    written.save(tmp_path / "run" / "prompts.safetensors")
    read = TunedPrompts.load(tmp_path / "run" / "prompts.safetensors")
    assert replace(read, tensors={}) == replace(written, tensors={})
    assert read.teacher == written.teacher
    assert read.tensors.keys() == written.tensors.keys()
    assert all(torch.equal(read.tensors[k], v) for k, v in written.tensors.items())


def test_the_fingerprint_tells_teachers_apart():
    changed = tensors()
    changed["vision_prompts.tokens"][1, 2, 47] += 1e-4
    others = [
        {"tensors": changed},
        {"context": "a drawing of a"},
        {"context": None},
        {"context": "None"},
        {"method": "coupled"},
        {"text_fingerprint": "e" * 32},
        {"clip": replace(CLIP, fingerprint=CLIP.fingerprint[::-1])},
    ]
    assert len({tuned().teacher, *(tuned(**other).teacher for other in others)}) == 8
    assert tuned().teacher == tuned().teacher


def test_restored_prompts_are_frozen_and_those_that_were_saved(clip_of, images, plain_of):
    clip, plain = clip_of("test-teacher"), plain_of("test-teacher")
    method = tuned().restore(clip)
    assert not method.training
    assert not [p for p in method.parameters() if p.requires_grad]
    features = method.encode_images(clip.image_tower, images)
    tokens = tensors()["vision_prompts.tokens"].double()
    assert relative_error(features, normalized(plain.image_features(images, tokens))) < 1e-5
    layers = torch.cat([tensors()["text_prompts.context"][None], tensors()["text_prompts.deep"]]).double()
    expected = normalized(plain.text_features([prompt_text(WORDS, name) for name in world.NAMES], layers))
    assert relative_error(method.encode_names(world.NAMES, clip.text_tower, clip.tokenize), expected) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": tensors(vision_width=32)},
        {"tensors": tensors(text_width=32)},
        {"tensors": {}},
        {"vision": PromptConfig(3, 4)},
        {"text": PromptConfig(4, 5)},
        {"vision": PromptConfig(1000, 2)},
        {"method": "no_such_package.Prompts"},
    ],
)
def test_prompts_for_another_clip_or_of_an_unknown_method_are_refused(changes, clip_of):
    with world.refused(ArtifactError, r"tuned prompts do not fit test-teacher \(.*use the CLIP"):
        tuned(**changes).restore(clip_of("test-teacher"))


@pytest.mark.parametrize("name", ["visual.ln_post.bias", "ln_final.bias"])
def test_a_clip_with_other_weights_than_then_is_refused(name, monkeypatch):
    prompts, changed = world.tuned_prompts({}, "test-teacher"), dict(world.weights("test-teacher"))
    changed[name] = changed[name] + 1e-3
    registered = world.CONFIGS["test-teacher"], {world.TAG: lambda: changed}
    monkeypatch.setitem(kdpl.clip.loading._REGISTRY, "test-teacher", registered)
    match = "'noise' of test-teacher are not those that the teacher was tuned on: restore them"
    with world.refused(WeightsError, match):
        prompts.load_clip()


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"clip": {"model": "x"}}, "has an invalid field 'clip.pretrained'"),
        (
            {"preprocessing": {"image_size": 32, "mean": [0, 0, 0], "std": [1, 1, 0]}},
            "has an invalid field 'preprocessing.std.2'",
        ),
        ({"more": 1}, "has an invalid field 'more'"),
        ({"context": "other words"}, "holds other prompts than its fingerprint says"),
    ],
)
def test_a_file_that_was_changed_is_refused(fields, match, tmp_path):
    path = tmp_path / "prompts.safetensors"
    tuned().save(path)
    kept, read = read_tensors(path, KIND, VERSION, "")
    write_tensors(path, KIND, VERSION, kept, {**read, **fields})
    with world.refused(ArtifactError, rf"prompts\.safetensors {match}"):
        TunedPrompts.load(path)
