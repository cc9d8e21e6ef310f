"""Image-text models of transformers with random weights."""

import json
import shutil
import sys

import pytest
import torch
import world
from hf_folders import READS_PADDING, SIZE, features, transformers
from huggingface_hub import constants
from plain import relative_error, standardized
from safetensors.torch import load_file, save_file

from kdpl import Classifier
from kdpl.clip import ClipConfig, load_clip, load_image_clip
from kdpl.clip.hugging_face.loading import KINDS
from kdpl.clip.loading import build_image_tower
from kdpl.clip.modules import Frozen
from kdpl.clip.towers.building import require_modest
from kdpl.errors import ArtifactError, ConfigError, WeightsError
from kdpl.prompts import TextPrompts
from kdpl.prompts.student_encoder import StudentEncoder

NAMES = ["sea horse", "crab", "the blue whale the sea horse"]


def image_tower(written):
    return load_image_clip(ClipConfig(written.address)).image_tower


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_transformers(kind, written, images):
    model, address = written(kind).model, written(kind).address
    clip = load_clip(ClipConfig(address))
    pixels = standardized(images, clip.preprocessing)
    expected = features(model.get_image_features(pixel_values=pixels))
    assert relative_error(clip.image_tower(images), expected) < 1e-5
    assert clip.image_tower.embed_dim == expected.shape[1]

    tokenizer = transformers.AutoTokenizer.from_pretrained(written(kind).path)
    inputs = tokenizer(NAMES, padding="max_length", max_length=20, return_tensors="pt")
    inputs = {name: inputs[name] for name in tokenizer.model_input_names}
    assert ("attention_mask" in inputs) == (kind not in READS_PADDING)
    ids = clip.tokenize(NAMES)
    assert torch.equal(ids, inputs["input_ids"])
    text = clip.text_tower(clip.text_tower.arrange(ids))
    assert relative_error(text, features(model.get_text_features(**inputs))) < 1e-5
    assert text.shape[1] == clip.image_tower.embed_dim

    scale = model.logit_scale.exp() if hasattr(model, "logit_scale") else 1 / model.temperature
    assert clip.logit_scale == pytest.approx(scale.item(), rel=1e-6)
    assert load_image_clip(ClipConfig(address, address)).identity == clip.identity


def built_again(tower):
    again = build_image_tower(json.loads(json.dumps(tower.config)), tower.preprocessing)
    again.load_state_dict(tower.state_dict())
    return again


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_tower_is_built_again_with_its_projection_and_without(kind, written, images):
    model, tower = written(kind).model, image_tower(written(kind))
    require_modest(tower.config, SIZE)
    assert not any("text" in name for name in tower.visual.state_dict())
    expected = tower(images)
    assert torch.equal(built_again(tower)(images), expected)

    pooled = tower.pooled(images)
    output = model.vision_model(pixel_values=tower.pixels(images))
    assert relative_error(pooled, output.pooler_output) < 1e-5
    projection = getattr(model, "visual_projection", torch.nn.Identity())
    assert (kind in ("siglip", "tipsv2")) == isinstance(projection, torch.nn.Identity)
    assert relative_error(projection(pooled), expected) < 1e-5
    tower.drop_projection()
    assert tower(images).equal(pooled)
    assert tower.embed_dim == pooled.shape[1]
    assert built_again(tower)(images).equal(pooled)


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_stands_in_place_of_words_and_learns(kind, written):
    clip = load_clip(ClipConfig(written(kind).address))
    tower = clip.text_tower
    texts = tower.arrange(clip.tokenize([f"a photo of {name}" for name in NAMES]))
    prompts = TextPrompts(3, 1, "a photo of", tower, clip.tokenize)
    assert relative_error(prompts(tower, texts, 128), tower(texts)) < 1e-5
    # in a model whose words a, photo and of have the learned vectors as embeddings, words do the same
    moved = world.disturbed(prompts, 0.5)
    learned = moved(tower, texts, 2)
    with torch.no_grad():
        words, table = clip.tokenize.words("a photo of"), tower.token_embedding.weight
        before = table[words].clone()
        table[words] = moved.context
        expected = tower(texts)
        table[words] = before
    assert relative_error(learned, expected) < 1e-5
    assert relative_error(learned, tower(texts)) > 1e-3, "the prompts must matter"
    learned.square().sum().backward()
    assert moved.context.grad.abs().min() > 0
    with world.refused(ConfigError, "at its input alone, not in 2 layers"):
        TextPrompts(3, 2, "a photo of", tower, clip.tokenize)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_stored_in_autocasts_type_change_no_bit(kind, written, images):
    tower = image_tower(written(kind))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = tower(images)
        Frozen(tower).store_in(torch.bfloat16)
        assert torch.equal(tower(images), expected)


def test_a_repository_in_the_hubs_cache_needs_no_network(written, tmp_path, monkeypatch, cached):
    cached(tmp_path, written("siglip").path)
    for module in (constants, transformers.utils.hub.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path))
    # that of transformers 4
    monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(tmp_path), raising=False)
    clip = load_clip(ClipConfig("hf:someone/siglip"))
    expected = load_clip(ClipConfig(written("siglip").address))
    assert clip.text_fingerprint == expected.text_fingerprint
    with world.refused(WeightsError, "config 'someone/other' of hf:someone/other .*as hf:PATH"):
        load_clip(ClipConfig("hf:someone/other"))


def change(path, **values):
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def pickle_alone(path):
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def leave_out_a_tensor(path):
    tensors = load_file(path / "model.safetensors")
    del tensors["vision_model.post_layernorm.weight"]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


def leave_out(*files):
    return lambda path: [(path / file).unlink() for file in files]


BAD = {
    "no image-text model": (lambda path: change(path, model_type="bert"), "type 'bert'.* aimv2"),
    "code of its own": (
        lambda path: change(path, model_type="odd", auto_map={"AutoModel": "odd.Odd"}),
        "of type 'odd', and code of its repository is never run",
    ),
    "pickled weights alone": (pickle_alone, "cannot load the safetensors weights"),
    "a tensor too few": (leave_out_a_tensor, "'vision_model.post_layernorm.weight' is missing"),
    "no config": (leave_out("config.json"), "hf:"),
    "no tokenizer": (leave_out("tokenizer.json", "tokenizer_config.json"), "the tokenizer"),
    "no image processor": (leave_out("preprocessor_config.json"), "the image processor"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_folder_that_kdpl_cannot_use_is_refused_in_one_sentence(what, written, tmp_path):
    damage, match = BAD[what]
    path = shutil.copytree(written("siglip").path, tmp_path / "model")
    damage(path)
    with world.refused(WeightsError, match):
        load_clip(ClipConfig(f"hf:{path}"))


def test_settings_of_other_models_and_a_missing_package_are_refused(written, monkeypatch):
    address = written("siglip").address
    for setting in ({"pretrained": "webli"}, {"quick_gelu": True}, {"image_size": 64}):
        with world.refused(ConfigError, "remove clip.pretrained"):
            load_image_clip(ClipConfig(address, **setting))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with world.refused(WeightsError, r"needs the package transformers.*kdpl\[transformers\]"):
        load_clip(ClipConfig(address))


def test_a_config_of_another_kind_is_never_built(written):
    tower = image_tower(written("siglip"))
    config = {**tower.config, "vision_cfg": {**tower.config["vision_cfg"], "hf": "bert"}}
    with pytest.raises(ValueError, match="'bert'"):
        build_image_tower(config, tower.preprocessing)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_from_a_repository_is_never_loaded(kind, written, tmp_path, images):
    path = shutil.copytree(written(kind).path, tmp_path / "model")
    kernel = {"attn_implementation": "someone/kernel"}
    settings = json.loads((path / "config.json").read_text())
    parts = {name: {**settings[name], **kernel} for name in ("text_config", "vision_config")}
    change(path, **kernel, **parts)
    tower = load_image_clip(ClipConfig(f"hf:{path}")).image_tower
    config = {**tower.config, "vision_cfg": {**tower.config["vision_cfg"], **kernel}}
    for loaded in (tower, build_image_tower(config, tower.preprocessing)):
        settings = loaded.visual.model.config
        parts = (settings, settings.text_config, settings.vision_config)
        assert {part._attn_implementation for part in parts} == {"sdpa"}
        assert loaded(images).isfinite().all()


def test_a_classifier_read_without_transformers_names_the_package(written, tmp_path, monkeypatch):
    clip = load_image_clip(ClipConfig(written("siglip").address))
    encoder = StudentEncoder(clip.image_tower, 0, 0, 24)
    Classifier(encoder, world.frozen_vectors(), 17.0, clip.identity).save(tmp_path)
    again = Classifier.load(tmp_path).encoder.tower.module
    assert again.config == clip.image_tower.config
    monkeypatch.setitem(sys.modules, "transformers", None)
    with world.refused(ArtifactError, "missing package .*transformers"):
        Classifier.load(tmp_path)
