"""CLIPs in open_clip's layout: in a folder, and in the hub's cache."""

import json
import shutil

import pytest
import torch
import world
from huggingface_hub import constants
from plain import relative_error
from runs import DATA, SHORT, STAGES, TEACHER, error_line
from siglip import BERT, CONFIG, SIZE, write_siglip, write_with_bert

from kdpl.__main__ import main
from kdpl.clip import ClipConfig, Preprocessing, load_clip, load_image_clip
from kdpl.errors import ConfigError, WeightsError
from kdpl.prompts import TextPrompts
from kdpl.prompts.tuned import TunedPrompts

RESNET = {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 4, "head_width": 8}


def lay_into_cache(cache, folder):
    """Lay a folder into a cache of the hub, as the repository someone/siglip."""
    repository, commit = cache / "models--someone--siglip", "a" * 40
    (repository / "snapshots").mkdir(parents=True)
    (repository / "snapshots" / commit).symlink_to(folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)


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
    # it lower-cases and drops punctuation
    assert torch.equal(ids[0], clip.tokenize(["sea horse"])[0])
    features = clip.text_tower(clip.text_tower.arrange(ids))
    assert relative_error(features, folder.model.encode_text(ids)) < 1e-5
    half = load_image_clip(ClipConfig(address, address))
    assert half.identity == clip.identity
    # settings of other models are refused beside it
    for setting in ({"pretrained": "webli"}, {"image_size": 64}):
        with world.refused(ConfigError, rf"remove clip\.{next(iter(setting))}"):
            load_image_clip(ClipConfig(address, **setting))


def test_a_repository_in_the_hubs_cache_needs_no_network(folder, tmp_path, monkeypatch):
    lay_into_cache(tmp_path, folder.path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert same(load_image_clip(ClipConfig("hf-hub:someone/siglip")), folder.model)
    with world.refused(WeightsError, "of hf-hub:someone/other .* as local-dir:PATH"):
        load_image_clip(ClipConfig("hf-hub:someone/other"))


LACKS = {
    "no config": ("open_clip_config.json", None, "not a CLIP in open_clip's layout"),
    "no model": ("open_clip_config.json", "{}", r"open_clip_config\.json has no model_cfg"),
    "no weights": ("open_clip_model.safetensors", None, "because it has no open_clip_model"),
    "bad weights": ("open_clip_model.safetensors", "odd", r"model\.safetensors cannot be read"),
    "bad tokenizer": ("tokenizer.json", "{}", "cannot load the tokenizer '.*' of local-dir:"),
}


@pytest.mark.parametrize("what", LACKS)
def test_a_folder_that_lacks_something_is_refused(what, folder, tmp_path):
    file, content, match = LACKS[what]
    path = shutil.copytree(folder.path, tmp_path / "clip")
    (path / file).unlink()
    if content is not None:
        (path / file).write_text(content)
    with world.refused(WeightsError, match):
        load_clip(ClipConfig(f"local-dir:{path}"))


def test_a_text_tower_of_hugging_face_in_the_folder_encodes_names_and_takes_a_context(tmp_path):
    written = write_with_bert(tmp_path / "biomed", vision=RESNET)
    clip = load_clip(ClipConfig(f"local-dir:{written.path}"))
    ids = clip.tokenize(["a sea horse", "crab"])
    features = clip.text_tower(clip.text_tower.arrange(ids))
    assert relative_error(features, written.model.encode_text(ids)) < 1e-5
    width = BERT["hidden_size"]
    assert TextPrompts(1, 1, None, clip.text_tower, clip.tokenize).context.shape == (1, width)
    (written.path / "config.json").unlink()
    with world.refused(WeightsError, "text tower 'somebody/bert' of .* local-dir:PATH"):
        load_clip(ClipConfig(f"local-dir:{written.path}"))


def test_a_clip_without_prompts_is_refused_with_the_config_that_uses_it_untuned(tmp_path, capsys):
    address = f"local-dir:{write_siglip(tmp_path / 'clip', RESNET, embed_cls=True).path}"
    none = [f"--model.init_args.{tower}_prompts.depth=0" for tower in ("vision", "text")]
    clip = f"--model.init_args.clip={{model: '{address}', pretrained: null}}"
    assert main(["fit", *DATA, *TEACHER, *SHORT, *none, clip, f"--out={tmp_path / 'out'}"]) == 1
    error_line(capsys, "configs/teacher/zero_shot.yaml")


@pytest.mark.slow
def test_it_is_tuned_distilled_and_exported(folder, tmp_path):
    changes, out = [], tmp_path / "out"
    clip = {"model": f"local-dir:{folder.path}", "pretrained": None}
    for stage in ("teacher", "student"):
        options = {"clip": clip, "vision_prompts": {"depth": 0}}
        file = tmp_path / f"{stage}.yaml"
        file.write_text(json.dumps({"model": {"init_args": options}}))
        changes.append(f"--{stage}={file}")
    assert main(["run", *DATA, *STAGES, *changes, *SHORT, f"--out={out}"]) == 0
    tuned = TunedPrompts.load(out / "teacher" / "prompts.safetensors")
    assert tuned.preprocessing.resize_mode == "squash"
    assert tuned.tensors["text_prompts.context"].abs().sum() > 0

    # a file that differs from the classifier would be refused
    pytest.importorskip("onnxruntime")
    command = ["export", str(out / "student" / "classifier"), "--format=onnx"]
    assert main([*command, f"--out={tmp_path / 'c.onnx'}"]) == 0


def test_a_downloaded_config_cannot_let_a_tokenizer_run_code(tmp_path, monkeypatch):
    seen = {}

    def record(*_, **options):
        seen.update(options)
        raise ValueError("seen")

    monkeypatch.setattr("kdpl.clip.loading.HFTokenizer", record)
    options = {**CONFIG["text_cfg"]["tokenizer_kwargs"], "trust_remote_code": True}
    path = write_siglip(tmp_path / "clip", tokenizer_kwargs=options).path
    with world.refused(WeightsError, "cannot load the tokenizer"):
        load_clip(ClipConfig(f"local-dir:{path}"))
    assert seen == {"clean": "canonicalize", "tokenizer_mode": None}
