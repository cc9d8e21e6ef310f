from dataclasses import replace

import pytest
import torch
import world

import kdpl.clip.loading
from kdpl.errors import ArtifactError, WeightsError
from kdpl.prompts import PromptConfig
from kdpl.prompts.tuned import KIND, VERSION, TunedPrompts
from kdpl.runtime.artifacts import read_tensors, write_tensors


def tensors(vision_width=48, text_width=40):
    draw = torch.Generator().manual_seed(0)
    return {
        "vision_prompts.tokens": torch.randn(2, 3, vision_width, generator=draw),
        "text_prompts.context": torch.randn(4, text_width, generator=draw),
        "text_prompts.deep": torch.randn(2, 4, text_width, generator=draw),
    }


def tuned(**changes):
    return world.tuned_prompts(changes.pop("tensors", tensors()), "test-teacher", **changes)


@pytest.mark.parametrize(
    "changes", [{}, {"context": None}, {"tensors": {}}, {"method_settings": {"rank": 2}}]
)
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
        {"method_settings": {"rank": 2}},
        {"text_fingerprint": "e" * 32},
        {"clip": replace(tuned().clip, fingerprint="f" * 32)},
    ]
    assert len({tuned().teacher, *(tuned(**other).teacher for other in others)}) == 9
    assert tuned().teacher == tuned().teacher


@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": tensors(vision_width=32)},
        {"text": PromptConfig(4, 5)},
        {"method": "no_such_package.Prompts"},
        {"method_settings": {"rank": 2}},
    ],
)
def test_prompts_for_another_clip_or_of_an_unknown_method_are_refused(changes, clip_of):
    with world.refused(ArtifactError, "do not fit test-teacher"):
        tuned(**changes).build_method(clip_of("test-teacher"))


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("visual.ln_post.bias", TunedPrompts.load_clip),
        ("visual.ln_post.bias", TunedPrompts.load_image_clip),
        ("ln_final.bias", TunedPrompts.load_clip),
    ],
)
def test_a_clip_with_other_weights_than_then_is_refused(name, load, monkeypatch):
    prompts, changed = world.tuned_prompts({}, "test-teacher"), dict(world.weights("test-teacher"))
    changed[name] = changed[name] + 1e-3
    registered = world.CONFIGS["test-teacher"], {world.TAG: lambda: changed}
    monkeypatch.setitem(kdpl.clip.loading._REGISTRY, "test-teacher", registered)
    with world.refused(WeightsError, "of test-teacher are not the weights"):
        load(prompts)


def test_a_file_that_was_changed_is_refused(tmp_path):
    path = tmp_path / "prompts.safetensors"
    tuned().save(path)
    kept, read = read_tensors(path, KIND, VERSION, "")
    write_tensors(path, KIND, VERSION, kept, {**read, "context": "other words"})
    with world.refused(ArtifactError, r"prompts\.safetensors .* fingerprint"):
        TunedPrompts.load(path)
