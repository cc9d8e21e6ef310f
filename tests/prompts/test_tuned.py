from dataclasses import replace

import pytest
import torch
import world
from plain import normalized, prompt_text, relative_error

import kdpl.clip.loading
from kdpl.class_vectors import ClassVectors
from kdpl.clip.identity import ClipIdentity, Preprocessing
from kdpl.clip.text import ArrangedTexts
from kdpl.errors import ArtifactError, WeightsError
from kdpl.prompts.text import encode_prompts, prompt_texts
from kdpl.prompts.tuned import KIND, VERSION, TunedPrompts
from kdpl.runtime.artifacts import read_tensors, write_tensors

CLIP = ClipIdentity("some-clip", "some-tag", True, "0123456789abcdef" * 2)
IMAGES = Preprocessing(32, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))


def tensors(seed=0, width=48, depth=2):
    draw = torch.Generator().manual_seed(seed)
    return {
        "vision_prompts.tokens": torch.randn(depth, 3, width, generator=draw),
        "text_prompts.context": torch.randn(4, 40, generator=draw),
        "text_prompts.deep": torch.randn(2, 4, 40, generator=draw),
    }


def tuned(of=None, clip=CLIP, context="a photo of a"):
    return TunedPrompts.of(tensors() if of is None else of, clip, 30.0, context, IMAGES)


@pytest.mark.parametrize("context", ["a photo of a", None])
def test_prompts_come_back_as_they_were_saved(context, tmp_path):
    saved = tuned(context=context)
    saved.save(tmp_path / "run" / "prompts.safetensors")
    read = TunedPrompts.load(tmp_path / "run" / "prompts.safetensors")
    assert replace(read, tensors={}) == replace(saved, tensors={})
    assert (read.clip, read.logit_scale, read.context, read.preprocessing) == (CLIP, 30.0, context, IMAGES)
    assert read.tensors.keys() == saved.tensors.keys()
    assert all(torch.equal(read.tensors[k], v) for k, v in saved.tensors.items())


def test_a_teacher_without_prompts_can_be_saved(tmp_path):
    saved = tuned({})
    saved.save(tmp_path / "prompts.safetensors")
    assert TunedPrompts.load(tmp_path / "prompts.safetensors") == saved


def test_the_fingerprint_tells_the_words_of_two_untuned_teachers_apart():
    assert tuned({}).teacher == tuned({}).teacher
    assert len({tuned({}, context=words).teacher for words in ("a photo of a", "a drawing of a", None, "None")}) == 4


def test_the_fingerprint_tells_prompts_and_clips_apart():
    changed = tensors()
    changed["vision_prompts.tokens"][1, 2, 47] += 1e-4
    other = replace(CLIP, fingerprint=CLIP.fingerprint[::-1])
    teachers = [tuned(t, c).teacher for t, c in [(tensors(), CLIP), (changed, CLIP), (tensors(), other)]]
    assert len(set(teachers)) == 3
    assert tuned().teacher == teachers[0]


def test_the_towers_prompts_are_frozen_and_those_that_were_saved(clip_of, images, plain_of):
    tower = clip_of("test-teacher").image_tower
    prompts = tuned().vision_prompts(tower)
    assert not prompts.tokens.requires_grad
    expected = plain_of("test-teacher").image_features(images, tensors()["vision_prompts.tokens"].double())
    assert torch.allclose(prompts(tower, images), expected.float(), rtol=0, atol=1e-5 * expected.abs().max().item())


def test_text_prompts_are_frozen_and_those_that_were_saved(clip_of, plain_of):
    clip = clip_of("test-teacher")
    prompts = tuned().text_prompts(clip.text_tower, clip.tokenize)
    assert not [p for p in prompts.parameters() if p.requires_grad]
    layers = torch.cat([tensors()["text_prompts.context"][None], tensors()["text_prompts.deep"]]).double()
    ids = ArrangedTexts.of(clip.tokenize(prompt_texts("a photo of a", 4, world.NAMES)))
    texts = [prompt_text("a photo of a", name) for name in world.NAMES]
    expected = normalized(plain_of("test-teacher").text_features(texts, layers))
    assert relative_error(encode_prompts(clip.text_tower, ids, prompts), expected) < 1e-5


def test_a_teacher_without_text_prompts_has_none(clip_of):
    clip = clip_of("test-teacher")
    assert tuned({}).text_prompts(clip.text_tower, clip.tokenize) is None


@pytest.mark.parametrize(("width", "depth"), [(32, 3), (40, 5)])
def test_text_prompts_of_another_tower_are_refused(width, depth, clip_of):
    clip = clip_of("test-teacher")
    context, deep = torch.ones(4, width), torch.ones(depth - 1, 4, width)
    prompts = tuned({"text_prompts.context": context, "text_prompts.deep": deep})
    match = rf"a text tower of width {width} and at least {depth} layers.*width 40 and 4 layers"
    with pytest.raises(ArtifactError, match=match) as error:
        prompts.text_prompts(clip.text_tower, clip.tokenize)
    assert world.one_sentence(error)


def test_the_clip_that_they_were_tuned_on_is_loaded(clip_of):
    clip = clip_of("test-teacher")
    assert world.tuned_prompts({}, "test-teacher").load_clip().identity == clip.identity


def test_a_clip_with_other_weights_than_then_is_refused(monkeypatch):
    prompts, changed = world.tuned_prompts({}, "test-teacher"), dict(world.weights("test-teacher"))
    changed["visual.ln_post.bias"] = changed["visual.ln_post.bias"] + 1e-3
    registered = kdpl.clip.loading._Registered(world.CONFIGS["test-teacher"], {world.TAG: lambda: changed})
    monkeypatch.setitem(kdpl.clip.loading._REGISTRY, "test-teacher", registered)
    match = "'noise' of test-teacher are not those that the teacher was tuned on: restore them"
    with pytest.raises(WeightsError, match=match) as error:
        prompts.load_clip()
    assert world.one_sentence(error)


def test_class_vectors_of_the_prompts_say_the_same_of_their_teacher():
    prompts = tuned()
    vectors = ClassVectors.of(prompts, torch.eye(2), ["cat", "dog"], 1)
    for field in ("clip", "logit_scale", "context", "preprocessing", "teacher"):
        assert getattr(vectors, field) == getattr(prompts, field), field
    assert (vectors.class_names, vectors.num_base) == (("cat", "dog"), 1)


def test_a_teacher_without_visual_prompts_has_none(clip_of):
    assert tuned({}).vision_prompts(clip_of("test-teacher").image_tower) is None


@pytest.mark.parametrize(("width", "depth"), [(32, 2), (48, 4)])
def test_prompts_of_another_tower_are_refused(width, depth, clip_of):
    prompts = tuned(tensors(width=width, depth=depth))
    with pytest.raises(
        ArtifactError, match=rf"width {width} and at least {depth} layers.*width 48 and 3 layers"
    ) as error:
        prompts.vision_prompts(clip_of("test-teacher").image_tower)
    assert world.one_sentence(error)


def test_a_file_whose_prompts_were_changed_is_refused(tmp_path):
    path = tmp_path / "prompts.safetensors"
    saved = tuned()
    saved.save(path)
    kept, fields = read_tensors(path, KIND, VERSION, "")
    write_tensors(path, KIND, VERSION, {**kept, "text_prompts.context": torch.ones(4, 40)}, fields)
    with pytest.raises(
        ArtifactError, match=r"prompts\.safetensors holds other prompts than its fingerprint says"
    ) as error:
        TunedPrompts.load(path)
    assert world.one_sentence(error)


@pytest.mark.parametrize("field", ["clip", "logit_scale", "context", "preprocessing", "teacher"])
def test_a_field_that_is_missing_is_named(field, tmp_path):
    path = tmp_path / "prompts.safetensors"
    tuned().save(path)
    kept, fields = read_tensors(path, KIND, VERSION, "")
    del fields[field]
    write_tensors(path, KIND, VERSION, kept, fields)
    with pytest.raises(ArtifactError, match=rf"prompts\.safetensors lacks or garbles the field '{field}'") as error:
        TunedPrompts.load(path)
    assert world.one_sentence(error)


@pytest.mark.parametrize("value", [3, {"model": "x"}, None])
def test_a_garbled_clip_is_refused(value, tmp_path):
    path = tmp_path / "prompts.safetensors"
    tuned().save(path)
    kept, fields = read_tensors(path, KIND, VERSION, "")
    write_tensors(path, KIND, VERSION, kept, {**fields, "clip": value})
    with pytest.raises(ArtifactError, match=r"prompts\.safetensors lacks or garbles the field") as error:
        TunedPrompts.load(path)
    assert world.one_sentence(error)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"prompts\.safetensors does not exist.*run stage 1") as error:
        TunedPrompts.load(tmp_path / "prompts.safetensors")
    assert world.one_sentence(error)
