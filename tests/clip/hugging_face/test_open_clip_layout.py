"""CLIPs in open_clip's layout: in a folder, and in the hub's cache."""

import pytest
import torch
import world
from huggingface_hub import constants
from PIL import Image
from plain import relative_error
from runs import DATA, SHORT, STAGES, TEACHER, configs, error_line, noise
from safetensors.torch import load_file, save_file
from siglip import BERT, SIZE, write_siglip, write_with_bert

from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.clip import ClipConfig, Preprocessing, load_clip, load_image_clip
from kdpl.errors import ConfigError, WeightsError
from kdpl.prompts import TextPrompts
from kdpl.prompts.tuned import TunedPrompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_siglip(tmp_path_factory.mktemp("clips") / "siglip")


def same(clip, model):
    state = model.state_dict()
    visual = clip.image_tower.visual.state_dict()
    return all(torch.equal(tensor, state[f"visual.{name}"]) for name, tensor in visual.items())


def test_a_folder_brings_its_weights_tokenizer_and_preprocessing(folder):
    address = f"local-dir:{folder.path}"
    clip = load_clip(ClipConfig(address))
    assert same(clip, folder.model)
    assert clip.preprocessing == Preprocessing(SIZE, (0.5,) * 3, (0.5,) * 3, "squash")
    assert (clip.identity.model, clip.identity.pretrained) == (address, address)
    assert clip.tokenize.start == 0
    ids = clip.tokenize(["Sea horse!", "a crab"])
    assert torch.equal(ids[0], clip.tokenize(["sea horse"])[0]), (
        "it lower-cases and drops punctuation"
    )
    features = clip.text_tower(clip.text_tower.arrange(ids))
    assert relative_error(features, folder.model.encode_text(ids)) < 1e-5
    half = load_image_clip(ClipConfig(address, address))
    assert half.identity == clip.identity


def test_a_repository_in_the_hubs_cache_serves_without_a_network(folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--someone--siglip" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(folder.path)
    (tmp_path / "models--someone--siglip" / "refs").mkdir()
    (tmp_path / "models--someone--siglip" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert same(load_image_clip(ClipConfig("hf-hub:someone/siglip")), folder.model)
    match = r"open_clip_config\.json of hf-hub:someone/other \(.*\): fetch .* give its folder as local-dir:PATH"
    with world.refused(WeightsError, match):
        load_image_clip(ClipConfig("hf-hub:someone/other"))


LACKS = {
    "no config": (
        "open_clip_config.json",
        None,
        "is not a CLIP in open_clip's layout, because it has no",
    ),
    "no model": ("open_clip_config.json", "{}", r"open_clip_config\.json has no model_cfg"),
    "no weights": (
        "open_clip_model.safetensors",
        None,
        "is not a CLIP in open_clip's layout, because it has no open_clip_model",
    ),
    "bad weights": (
        "open_clip_model.safetensors",
        "odd",
        r"open_clip_model\.safetensors cannot be read",
    ),
    "bad tokenizer": ("tokenizer.json", "{}", "cannot load the tokenizer '.*' of local-dir:"),
}


@pytest.mark.parametrize("what", LACKS)
def test_a_folder_that_lacks_something_is_refused(what, tmp_path):
    path, (file, content, match) = write_siglip(tmp_path / "clip").path, LACKS[what]
    (path / file).unlink()
    if content is not None:
        (path / file).write_text(content)
    with world.refused(WeightsError, match):
        load_clip(ClipConfig(f"local-dir:{path}"))


def test_weights_of_another_model_are_refused_by_the_first_that_does_not_fit(tmp_path):
    path = write_siglip(tmp_path / "clip").path
    save_file({"odd": torch.ones(2)}, path / "open_clip_model.safetensors")
    with world.refused(
        WeightsError,
        r"safetensors does not hold the weights of local-dir:.* \(tensor '.*' is missing, tensor 'odd' is unknown",
    ):
        load_clip(ClipConfig(f"local-dir:{path}"))


def test_other_weights_beside_an_address_are_refused(folder):
    with world.refused(
        ConfigError, r"local-dir:.* has its own weights, not 'webli': remove clip\.pretrained"
    ):
        load_clip(ClipConfig(f"local-dir:{folder.path}", "webli"))


def test_a_text_tower_of_hugging_face_in_the_folder_encodes_names_and_takes_a_context(tmp_path):
    written = write_with_bert(tmp_path / "biomed")
    clip = load_clip(ClipConfig(f"local-dir:{written.path}"))
    ids = clip.tokenize(["a sea horse", "crab"])
    features = clip.text_tower(clip.text_tower.arrange(ids))
    assert relative_error(features, written.model.encode_text(ids)) < 1e-5
    assert TextPrompts(1, 1, None, clip.text_tower, clip.tokenize).context.shape == (1, 24)


def test_a_text_tower_that_the_folder_lacks_is_named(tmp_path):
    written = write_with_bert(tmp_path / "biomed")
    (written.path / "config.json").unlink()
    match = r"text tower 'somebody/bert' of .*: fetch the model and the files of its text tower .* local-dir:PATH"
    with world.refused(WeightsError, match):
        load_clip(ClipConfig(f"local-dir:{written.path}"))


RESNET = {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 4, "head_width": 8}


def test_a_clip_that_takes_no_prompts_is_refused_with_the_config_that_uses_it_untuned(
    tmp_path, capsys
):
    address = f"local-dir:{write_siglip(tmp_path / 'clip', RESNET, embed_cls=True).path}"
    fit = ["fit", *DATA, *TEACHER, *SHORT, f"--out={tmp_path / 'out'}"]
    clip = [f"--model.init_args.clip={{model: '{address}', pretrained: null}}"]
    vision, text = (
        "--model.init_args.vision_prompts.depth=0",
        "--model.init_args.text_prompts.depth=0",
    )
    for less, kind in (([], "image tower of kind ModifiedResNet"), ([vision], "TextTransformer")):
        assert main([*fit, *clip, *less]) == 1
        error_line(capsys, kind, "prompts.depth to 0")
    assert main([*fit, *clip, vision, text]) == 1
    assert (
        "trains nothing: use it untuned, with configs/teacher/zero_shot.yaml after"
        in error_line(capsys)
    )
    assert main([*fit, *clip, *configs("teacher/zero_shot.yaml")]) == 0
    assert (tmp_path / "out/class_vectors.safetensors").is_file()


def test_a_context_alone_is_tuned_before_a_text_tower_of_hugging_face(tmp_path, capsys):
    folder = write_with_bert(tmp_path / "clip", vision=RESNET).path
    out = tmp_path / "out"
    fit = ["fit", *DATA, *TEACHER, *SHORT, *configs("teacher/coop.yaml"), f"--out={out}"]
    fit.append(f"--model.init_args.clip={{model: 'local-dir:{folder}', pretrained: null}}")
    assert main([*fit, "--model.init_args.text_prompts.depth=2"]) == 1
    error_line(capsys, "HFTextEncoder", "not in 2 layers: set text_prompts.depth to 1")
    assert main(fit) == 0
    prompts = load_file(out / "prompts.safetensors")
    assert prompts["text_prompts.context"].shape[1] == BERT["hidden_size"]
    assert (out / "class_vectors.safetensors").is_file()


def test_a_size_of_images_is_for_networks_of_timm_alone(folder):
    with world.refused(
        ConfigError, r"is a CLIP with a fixed size of images: remove clip\.image_size"
    ):
        load_image_clip(ClipConfig(f"local-dir:{folder.path}", image_size=64))


@pytest.mark.slow
def test_it_is_tuned_distilled_into_a_network_of_timm_and_exported(folder, tmp_path):
    clips = {
        "teacher": f"{{model: 'local-dir:{folder.path}', pretrained: null}}",
        "student": "{model: 'timm:test_resnet', pretrained: random, image_size: 32}",
    }
    for stage, clip in clips.items():
        (tmp_path / f"{stage}.yaml").write_text(
            f"model: {{init_args: {{clip: {clip}, vision_prompts: {{depth: 0}}}}}}"
        )
    changes = [f"--{stage}={tmp_path / stage}.yaml" for stage in clips]
    out = tmp_path / "out"
    normal = ["--student", str(tmp_path / "normal.yaml")]
    (tmp_path / "normal.yaml").write_text("model: {init_args: {vision_prompts: {init: normal}}}")
    assert main(["run", *DATA, *STAGES, *changes, *normal, *SHORT, f"--out={out}"]) == 0
    classifier = Classifier.load(out / "student" / "classifier")
    prompts = TunedPrompts.load(out / "teacher" / "prompts.safetensors")
    assert prompts.preprocessing.resize_mode == "squash"
    assert prompts.tensors["text_prompts.context"].abs().sum() > 0

    paths = [str(tmp_path / f"{seed}.png") for seed in range(4)]
    for seed, path in enumerate(paths):
        noise(40, 30, seed=seed).save(path)
    exported = tmp_path / "c.onnx"
    assert (
        main(
            ["export", str(out / "student" / "classifier"), "--format", "onnx", f"--out={exported}"]
        )
        == 0
    )
    session = pytest.importorskip("onnxruntime").InferenceSession(exported)
    images = torch.stack([classifier.prepare(Image.open(path)) for path in paths])
    (probabilities,) = session.run(["probabilities"], {"images": images.numpy()})
    for row, ((name, probability),) in zip(probabilities, classifier.predict(paths), strict=True):
        assert name == classifier.class_names[row.argmax()]
        assert probability == pytest.approx(row.max(), abs=1e-4)
