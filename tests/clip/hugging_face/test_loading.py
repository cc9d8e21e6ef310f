"""Image-text models of transformers with random weights."""

import json
import sys

import pytest
import torch
import world
from hf_folders import LAYERS, READS_PADDING, SIZE, features, transformers, write
from huggingface_hub import constants
from PIL import Image
from plain import relative_error
from runs import DATA, SHORT, TEACHER, configs, error_line, noise

from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.clip import ClipConfig, load_clip, load_image_clip
from kdpl.clip.hugging_face.loading import KINDS
from kdpl.clip.loading import build_image_tower
from kdpl.clip.modules import Frozen
from kdpl.clip.towers.kinds import require_modest
from kdpl.errors import ArtifactError, ConfigError, WeightsError
from kdpl.prompts import TextPrompts
from kdpl.prompts.student_encoder import (
    EncoderSettings,
    StudentEncoder,
    encoder_tensors,
    read_encoder,
)
from kdpl.prompts.tuned import TunedPrompts

STAGES = ("teacher", "student")
NAMES = ["sea horse", "crab", "blue whale of the sea"]
CLASSES = ["sea horse", "crab", "blue whale"]


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_transformers(kind, written, images):
    found = written(kind)
    clip = load_clip(ClipConfig(found.address))
    about = clip.preprocessing
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (about.mean, about.std))
    pixels = (images / 255 - mean) / std
    expected = features(found.model.get_image_features(pixel_values=pixels))
    assert relative_error(clip.image_tower(images), expected) < 1e-5
    assert clip.image_tower.embed_dim == expected.shape[1]

    tokenizer = transformers.AutoTokenizer.from_pretrained(found.path)
    inputs = tokenizer(NAMES, padding="max_length", max_length=20, return_tensors="pt")
    inputs = {name: inputs[name] for name in tokenizer.model_input_names}
    assert ("attention_mask" in inputs) == (kind not in READS_PADDING)
    ids = clip.tokenize(NAMES)
    assert torch.equal(ids, inputs["input_ids"])
    text = clip.text_tower(clip.text_tower.arrange(ids))
    assert relative_error(text, features(found.model.get_text_features(**inputs))) < 1e-5
    assert text.shape[1] == clip.image_tower.embed_dim

    own = getattr(found.model, "logit_scale", None)
    scale = 1 / found.model.temperature if own is None else own.exp()
    assert clip.logit_scale == pytest.approx(scale.item(), rel=1e-6)
    assert load_image_clip(ClipConfig(found.address, found.address)).identity == clip.identity


@pytest.mark.parametrize("kind", KINDS)
def test_pooled_features_are_those_before_the_models_own_projection(kind, written, images):
    model, tower = (
        written(kind).model,
        load_image_clip(ClipConfig(written(kind).address)).image_tower,
    )
    pooled = tower.pooled(images)
    output = model.vision_model(pixel_values=tower.pixels(images))
    assert relative_error(pooled, output.pooler_output) < 1e-5
    projection = getattr(model, "visual_projection", torch.nn.Identity())
    assert (kind in ("siglip", "tipsv2")) == isinstance(projection, torch.nn.Identity)
    assert relative_error(projection(pooled), tower(images)) < 1e-5

    tower.drop_projection()
    assert tower(images).equal(pooled)
    assert tower.embed_dim == pooled.shape[1]
    again = build_image_tower(tower.config, tower.preprocessing)
    again.load_state_dict(tower.state_dict())
    assert again(images).equal(pooled)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_once", [128, 2])
def test_a_context_stands_in_place_of_words_and_learns(kind, at_once, written):
    found = written(kind)
    clip = load_clip(ClipConfig(found.address))
    tower = clip.text_tower
    texts = tower.arrange(clip.tokenize([f"a photo of {name}" for name in CLASSES]))
    prompts = TextPrompts(3, 1, "a photo of", tower, clip.tokenize)
    assert relative_error(prompts(tower, texts, at_once), tower(texts)) < 1e-5
    # in a model whose words a, photo and of have the learnt vectors as embeddings, words do the same
    moved = world.disturbed(prompts, 0.5)
    learnt = moved(tower, texts, at_once)
    with torch.no_grad():
        words, table = clip.tokenize.words("a photo of"), tower.token_embedding.weight
        before = table[words].clone()
        table[words] = moved.context
        expected = tower(texts)
        table[words] = before
    assert relative_error(learnt, expected) < 1e-5
    assert relative_error(learnt, tower(texts)) > 1e-3, "the prompts must matter"
    learnt.square().sum().backward()
    assert moved.context.grad.abs().min() > 0
    with world.refused(ConfigError, "takes prompts at its input alone, not in 2 layers: set"):
        TextPrompts(3, 2, "a photo of", tower, clip.tokenize)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_tower_is_built_again_from_its_config(kind, written, images):
    tower = load_image_clip(ClipConfig(written(kind).address)).image_tower
    config = json.loads(json.dumps(tower.config))
    require_modest(config, SIZE)
    again = build_image_tower(config, tower.preprocessing)
    again.visual.load_state_dict(tower.visual.state_dict())
    assert torch.equal(again(images), tower(images))
    assert not any("text" in name for name in tower.visual.state_dict())
    with torch.device("meta"):
        shapes = build_image_tower(config, tower.preprocessing).visual.state_dict()
    assert shapes.keys() == tower.visual.state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_stored_in_autocasts_type_change_no_bit(kind, written, images):
    tower = load_image_clip(ClipConfig(written(kind).address)).image_tower
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = tower(images)
        Frozen(tower).store_in(torch.bfloat16)
        assert torch.equal(tower(images), expected)


def test_a_repository_in_the_hubs_cache_serves_without_a_network(written, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--someone--siglip" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(written("siglip").path)
    (tmp_path / "models--someone--siglip" / "refs").mkdir()
    (tmp_path / "models--someone--siglip" / "refs" / "main").write_text("a" * 40)
    for module in (constants, transformers.utils.hub.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path))
    # that of transformers 4
    monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(tmp_path), raising=False)
    clip = load_clip(ClipConfig("hf:someone/siglip"))
    assert (
        clip.text_fingerprint == load_clip(ClipConfig(written("siglip").address)).text_fingerprint
    )
    with world.refused(
        WeightsError, r"cannot load the config 'someone/other' of hf:someone/other \(.*as hf:PATH$"
    ):
        load_clip(ClipConfig("hf:someone/other"))


def change(path, **values):
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def pickle_alone(path):
    from safetensors.torch import load_file

    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def leave_out_a_tensor(path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    del tensors["vision_model.post_layernorm.weight"]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


BAD = {
    "no image-text model": (
        lambda path: change(path, model_type="bert"),
        r"is of type 'bert', and code .* never run: use an image-text model of .* aimv2, .*siglip",
    ),
    "patches of any number": (
        lambda path: change(path, model_type="siglip2"),
        "is of type 'siglip2', and code",
    ),
    "code of its own": (
        lambda path: change(path, model_type="odd", auto_map={"AutoModel": "odd.Odd"}),
        "is of type 'odd', and code of its repository is never run: use",
    ),
    "pickled weights alone": (
        pickle_alone,
        r"cannot load the safetensors weights '.*' of hf:.* \(.*\)",
    ),
    "a tensor too few": (
        leave_out_a_tensor,
        r"weights '.*' of hf:.* \(tensor 'vision_model.post_layernorm.weight' is missing\)",
    ),
    "no config": (lambda path: (path / "config.json").unlink(), r"hf:.*: (fetch|use) "),
    "no tokenizer": (
        lambda path: [(path / f"tokenizer{end}.json").unlink() for end in ("", "_config")],
        r"cannot load the tokenizer '.*' of hf:",
    ),
    "no image processor": (
        lambda path: (path / "preprocessor_config.json").unlink(),
        r"cannot load the image processor '.*' of hf:",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_folder_that_kdpl_cannot_use_is_refused_in_one_sentence(what, tmp_path):
    path, (damage, match) = write(tmp_path / "model", "siglip").path, BAD[what]
    damage(path)
    with world.refused(WeightsError, match):
        load_clip(ClipConfig(f"hf:{path}"))


def test_settings_of_other_models_and_a_missing_package_are_refused(written, monkeypatch):
    address = written("siglip").address
    for setting in ({"pretrained": "webli"}, {"quick_gelu": True}, {"image_size": 64}):
        with world.refused(ConfigError, "remove clip.pretrained, clip.quick_gelu and"):
            load_image_clip(ClipConfig(address, **setting))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with world.refused(WeightsError, r"needs the package transformers: pip install 'kdpl\[trans"):
        load_clip(ClipConfig(address))


def test_a_config_of_another_kind_is_never_built(written):
    tower = load_image_clip(ClipConfig(written("siglip").address)).image_tower
    config = {**tower.config, "vision_cfg": {**tower.config["vision_cfg"], "hf": "bert"}}
    with pytest.raises(ValueError, match="builds no image tower of kind 'bert'"):
        build_image_tower(config, tower.preprocessing)


def test_a_classifier_that_is_read_without_transformers_names_the_package(written, monkeypatch):
    tower = load_image_clip(ClipConfig(written("siglip").address)).image_tower
    encoder = StudentEncoder(tower, 0, 0, None)
    settings = EncoderSettings(
        image_config=tower.config,
        preprocessing=tower.preprocessing,
        prompt_length=0,
        prompt_depth=0,
        projector=False,
    )
    tensors = encoder_tensors(encoder)
    again = read_encoder(settings, tensors, tower.embed_dim, "model.safetensors", "fetch it")
    assert again.tower.module.config == tower.config
    monkeypatch.setitem(sys.modules, "transformers", None)
    with world.refused(ArtifactError, r"needs a missing package \(.*transformers.*\): install it"):
        read_encoder(settings, tensors, tower.embed_dim, "model.safetensors", "fetch it")


@pytest.mark.parametrize("kind", KINDS)
def test_attention_from_a_repository_is_never_loaded(kind, tmp_path, images):
    found = write(tmp_path / "model", kind)
    kernel, about = "someone/kernel", json.loads((found.path / "config.json").read_text())
    parts = {
        name: {**about[name], "attn_implementation": kernel}
        for name in ("text_config", "vision_config")
    }
    change(found.path, attn_implementation=kernel, **parts)
    tower = load_image_clip(ClipConfig(found.address)).image_tower
    config = {
        **tower.config,
        "vision_cfg": {**tower.config["vision_cfg"], "attn_implementation": kernel},
    }
    for each in (tower, build_image_tower(config, tower.preprocessing)):
        settings = each.visual.model.config
        parts = (settings, settings.text_config, settings.vision_config)
        assert {part._attn_implementation for part in parts} == {"sdpa"}
        assert each(images).isfinite().all()


def settings_for(tmp_path, stage, address):
    """Write a config of one stage with such a model, which takes no visual prompts."""
    file = tmp_path / f"{stage}.yaml"
    clip = f"{{model: '{address}', pretrained: null}}"
    file.write_text(f"model: {{init_args: {{clip: {clip}, vision_prompts: {{depth: 0}}}}}}")
    return file


def test_a_context_is_tuned_and_frozen_into_class_vectors(written, tmp_path, capsys):
    teacher = settings_for(tmp_path, "teacher", written("siglip").address)
    fit = ["fit", *DATA, *TEACHER, *SHORT, f"--config={teacher}", f"--out={tmp_path / 'out'}"]
    assert main(fit) == 1
    error_line(capsys, "TextHalf", "set text_prompts.depth to 1")
    assert main([*fit, *configs("teacher/coop.yaml")]) == 0
    prompts = TunedPrompts.load(tmp_path / "out" / "prompts.safetensors")
    assert prompts.tensors["text_prompts.context"].shape[1] == LAYERS["hidden_size"]
    assert (tmp_path / "out" / "class_vectors.safetensors").is_file()


@pytest.mark.slow
def test_a_run_with_such_a_teacher_and_student_predicts_and_is_exported(written, tmp_path):
    files = {stage: settings_for(tmp_path, stage, written("siglip").address) for stage in STAGES}
    normal = tmp_path / "normal.yaml"
    normal.write_text("model: {init_args: {vision_prompts: {init: normal}}}")
    coop = configs("teacher/coop.yaml")[0].partition("=")[2]
    stages = [
        *(f"--teacher={file}" for file in ("quickstart", files["teacher"], coop)),
        *(f"--student={file}" for file in ("quickstart", files["student"], normal)),
    ]
    out = tmp_path / "out"
    assert main(["run", *DATA, *stages, *SHORT, f"--out={out}"]) == 0

    folder = out / "student" / "classifier"
    classifier = Classifier.load(folder)
    paths = [str(tmp_path / f"{seed}.png") for seed in range(3)]
    for seed, path in enumerate(paths):
        noise(40, 30, seed=seed).save(path)
    exported = tmp_path / "c.onnx"
    assert main(["export", str(folder), "--format", "onnx", f"--out={exported}"]) == 0
    session = pytest.importorskip("onnxruntime").InferenceSession(exported)
    prepared = torch.stack([classifier.prepare(Image.open(path)) for path in paths])
    (probabilities,) = session.run(["probabilities"], {"images": prepared.numpy()})
    for row, ((name, probability),) in zip(probabilities, classifier.predict(paths), strict=True):
        assert name == classifier.class_names[row.argmax()]
        assert probability == pytest.approx(row.max(), abs=1e-4)
