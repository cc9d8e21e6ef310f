"""Loading: weights, activation and preprocessing of any source; and what open_clip 4 has beside 3.3."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
import world
from plain import relative_error
from safetensors.torch import save_file

import kdpl.clip.loading
from kdpl.clip import ClipConfig, Preprocessing, load_clip, load_image_clip
from kdpl.clip.loading import known_models
from kdpl.clip.modules import fingerprint
from kdpl.clip.versions import list_models
from kdpl.clip.weights import preprocessing_of_file
from kdpl.errors import WeightsError

NAME = "test-teacher"
QUICK = "test-teacher-quickgelu"
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
USUAL = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


def refused(config, match, load=load_clip):
    with world.refused(WeightsError, match):
        load(config)


def of_file(path, model=NAME, quick_gelu=False, **options):
    return ClipConfig(model, str(path), quick_gelu, **options)


def write(path, state):
    """Write weights as safetensors or as ``torch.save`` does."""
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return path


@pytest.fixture
def weights(tmp_path):
    """A file of the weights of a model of the test world."""
    return write(tmp_path / "w.pt", world.weights(NAME))


def same_weights(clip):
    """Whether a loaded Clip holds the weights of a model of the test world."""
    state = world.weights(NAME)
    visual = clip.image_tower.visual.state_dict()
    text = clip.text_tower.state_dict()
    equal = [torch.equal(v, state[f"visual.{k}"]) for k, v in visual.items()]
    equal += [torch.equal(v, state[k]) for k, v in text.items()]
    assert len(equal) == len(state) - 1, "all but logit_scale"
    return all(equal) and clip.logit_scale == pytest.approx(state["logit_scale"].exp().item())


def test_random_weights_are_the_same_each_time_and_said_to_be_random():
    clips = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        with pytest.warns(UserWarning, match="test-teacher has random weights"):
            clips.append(load_clip(ClipConfig(NAME, "random")))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert clips[0].identity == clips[1].identity
    assert not same_weights(clips[0])


def test_a_fingerprint_changes_with_each_weight_name_and_shape(clip_of):
    state = clip_of(NAME).image_tower.visual.state_dict()
    changed = {k: v.clone() for k, v in state.items()}
    changed["transformer.resblocks.2.mlp.c_proj.bias"][47] += 1e-6
    renamed = {k.replace("ln_pre", "ln_pro"): v for k, v in state.items()}
    reshaped = {**state, "proj": state["proj"].view(24, 48)}
    fewer = dict(list(state.items())[1:])
    digests = [fingerprint(s.items()) for s in (state, changed, renamed, reshaped, fewer)]
    assert len(set(digests)) == 5
    assert fingerprint(reversed(state.items())) == digests[0]
    assert digests[0] == clip_of(NAME).identity.fingerprint
    assert len(digests[0]) == 32


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("vit-l-14", "'vit-l-14': use a name .*ViT-L-14"),
        ("test-techer", f"'test-techer': use a name .*{NAME}"),
        ("ViT-B-16-SigLIP", "tokenizer 'timm/ViT-B-16-SigLIP'"),
        ("nllb-clip-base", "tokenizer 'facebook/nllb-200-distilled-600M' of nllb-clip-base"),
    ],
)
def test_a_model_that_is_unknown_or_out_of_reach_is_named(name, match):
    if "tokenizer" in match:
        pytest.importorskip("transformers")
    refused(ClipConfig(name, "random"), match)


@pytest.mark.parametrize(
    ("model", "tag", "known"),
    [(NAME, "opnai", world.TAG), (NAME, "none.pt", world.TAG), ("RN50", "opnai", "openai, ")],
)
def test_an_unknown_tag_or_a_missing_file_gets_the_known_ones(model, tag, known):
    refused(ClipConfig(model, tag), f"'{tag}', nor .*: use one of {known}")


@pytest.fixture
def tag(monkeypatch, weights):
    """A pretrained tag ``hub`` of both test teachers, whose download gives a local file; change it through the dict."""
    entry = {"url": "https://example.org/weights.pt", "quick_gelu": False}
    tags = {"hub": entry}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _, name: tags.get(name, {}))
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: str(weights))
    return entry


def test_the_tags_own_preprocessing_is_used(tag, images, plain_of):
    # an interpolation that training drew is bicubic
    tag.update(mean=MEAN, std=STD, resize_mode="squash", interpolation="random")
    clip = load_clip(ClipConfig(NAME, "hub"))
    assert same_weights(clip)
    assert clip.identity.pretrained == "hub"
    assert clip.preprocessing == Preprocessing(32, MEAN, STD, "squash")
    expected = [plain_of(NAME).image_tokens(image, MEAN, STD) for image in images]
    assert relative_error(clip.image_tower.embed(images), torch.stack(expected)) < 1e-5


@pytest.mark.filterwarnings("ignore:.*random weights")
@pytest.mark.parametrize("pretrained", ["hub", world.TAG, "random"])
def test_what_the_config_sets_wins_for_weights_of_any_source(pretrained, tag):
    settings = {"mean": MEAN, "resize_mode": "squash", "quick_gelu": True}
    clip = load_image_clip(ClipConfig(NAME, pretrained, **settings))
    assert clip.preprocessing == Preprocessing(32, MEAN, USUAL[1], "squash")
    assert clip.identity.quick_gelu


def test_every_pair_of_open_clips_list_has_the_activation_of_its_weights(monkeypatch):
    built = []
    monkeypatch.setattr("kdpl.clip.loading.build_clip", built.append)
    monkeypatch.setattr("kdpl.clip.loading._image_half", lambda *_: None)
    usable = {*list_models()}
    for model, name in open_clip.list_pretrained():
        if model in usable:
            load_image_clip(ClipConfig(model, name))
            either = (open_clip.get_model_config(model), open_clip.get_pretrained_cfg(model, name))
            expected = any(config.get("quick_gelu") for config in either)
            assert built[-1].get("quick_gelu", False) == expected, (model, name)
    assert sum(bool(config.get("quick_gelu")) for config in built) > 50


def test_a_checkpoint_of_open_clips_training_is_loaded(tmp_path):
    state = {f"module.{name}": tensor for name, tensor in world.weights(NAME).items()}
    path = write(tmp_path / "checkpoint.pt", {"epoch": 3, "state_dict": state})
    clip = load_clip(of_file(path))
    assert same_weights(clip)
    assert clip.identity.pretrained == str(path)


@pytest.mark.parametrize(
    "model", ["MobileCLIP-S1", "MobileCLIP2-S0", "PE-Core-T-16-384", "ViT-B-16-SigLIP"]
)
def test_images_of_a_file_are_prepared_as_for_the_models_pretrained_weights(model):
    prepared = preprocessing_of_file(ClipConfig(model, "w.pt"), Path("w.pt"))
    tags = open_clip.list_pretrained_tags_by_model(model)
    for tag in tags:
        expected = open_clip.get_pretrained_cfg(model, tag)
        assert all([*value] == [*expected[name]] for name, value in prepared.items())
    assert tags


def test_where_those_differ_the_config_or_the_file_beside_it_tells(weights, monkeypatch):
    tags = {"a": {"mean": (0.5,) * 3}, "b": {"resize_mode": "squash"}}
    monkeypatch.setattr(open_clip, "list_pretrained", lambda: [(NAME, name) for name in tags])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _, name: tags.get(name, {}))
    refused(of_file(weights), r"differ in mean: set clip\.mean, or put")
    refused(of_file(weights, mean=MEAN), r"differ in resize_mode: set clip\.resize_mode, or put")
    for mode in ("squash", "shortest"):
        clip = load_image_clip(of_file(weights, mean=MEAN, std=STD, resize_mode=mode))
        assert clip.preprocessing == Preprocessing(32, MEAN, STD, mode)
    # no setting is advised that does not exist
    tags["b"] = {"interpolation": "bilinear"}
    refused(of_file(weights, mean=MEAN), r"differ in interpolation: put the weights' open_clip_co")
    beside = weights.with_name("open_clip_config.json")
    for told, expected in (
        ({"mean": MEAN, "std": STD}, (MEAN, STD)),
        ({"resize_mode": "squash", "interpolation": "bilinear"}, (*USUAL, "squash", "bilinear")),
    ):
        beside.write_text(json.dumps({"preprocess_cfg": told}))
        assert load_image_clip(of_file(weights)).preprocessing == Preprocessing(32, *expected)
    beside.write_text('{"preprocess_cfg": {"resize_mode": "longest"}}')
    refused(of_file(weights), "'longest'")
    beside.write_text("{}")
    refused(of_file(weights), r"open_clip_config\.json has no preprocess_cfg")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_setting_decides_on_the_activation_of_a_whole_file(suffix, tmp_path, clip_of, images):
    path = write(tmp_path / f"w{suffix}", world.weights(NAME))
    refused(of_file(path, quick_gelu=None), rf"w{suffix} .* set clip\.quick_gelu")
    model = {".pt": NAME, ".safetensors": QUICK}[suffix]
    for quick_gelu, same in ((False, NAME), (True, QUICK)):
        clip = load_clip(of_file(path, model, quick_gelu))
        assert same_weights(clip)
        assert clip.identity.quick_gelu == quick_gelu
        assert torch.equal(clip.image_tower(images), clip_of(same).image_tower(images))
    # a file that is cut
    path.write_bytes(path.read_bytes()[: {".pt": -1000, ".safetensors": 0}[suffix]])
    refused(of_file(path), rf"w{suffix} cannot be read")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda _: {}, ""),
        (lambda _: [], ""),
        (lambda _: {"state_dict": {}}, ""),
        (lambda _: None, ""),
        (lambda state: {**state, "visual.proj": {"a": 1}}, "visual.proj' is missing"),
        (lambda state: {**state, "extra": torch.ones(1)}, "extra' is unknown"),
        (lambda state: {**state, "visual.proj": torch.ones(48, 25)}, "proj' has shape .48, 25."),
    ],
)
def test_a_file_without_the_models_weights_is_refused(change, match, tmp_path):
    path = write(tmp_path / "w.pt", change(world.weights(NAME)))
    refused(of_file(path), rf"w\.pt .*{match}")


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_does_not_run(legacy, tmp_path):
    path, target = tmp_path / "w.pt", tmp_path / "pwned"
    state = {**world.weights("test-student"), "extra": world.Call(Path.touch, target)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    refused(of_file(path, "test-student"), r"w\.pt cannot be read")
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists(), "the file was harmless: this test shows nothing"


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")
def test_a_torchscript_archive_is_refused_and_not_loaded_as_its_code_would_run(
    tmp_path, monkeypatch
):
    path = tmp_path / "w.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was loaded"))
    refused(of_file(path), r"w\.pt cannot be read .*TorchScript")


@pytest.mark.parametrize("name", [QUICK, "test-resnet", "test-timm"])
def test_the_image_half_alone_is_that_of_the_whole(name, clip_of):
    half, whole = load_image_clip(ClipConfig(name, world.TAG)), clip_of(name)
    images = world.images_of(torch.arange(3), seed=1, size=whole.preprocessing.image_size)
    # batch norms keep their statistics
    assert torch.equal(half.image_tower.train()(images), whole.image_tower(images))
    assert half.image_tower.embed_dim == whole.image_tower.embed_dim
    for attribute in ("identity", "logit_scale", "preprocessing"):
        assert getattr(half, attribute) == getattr(whole, attribute)
    assert not hasattr(half, "text_tower")


def test_weights_of_a_whole_clip_serve_its_image_half_unless_one_is_missing(tmp_path, clip_of):
    state = world.weights("test-timm")
    state = {**state, "logit_scale": state["logit_scale"].reshape(1)}
    half = load_image_clip(of_file(write(tmp_path / "mobile.pt", state), "test-timm"))
    assert half.logit_scale == pytest.approx(23)
    assert half.identity.fingerprint == clip_of("test-timm").identity.fingerprint
    name = next(key for key in state if key.startswith("visual."))
    del state[name]
    config = of_file(write(tmp_path / "fewer.pt", state), "test-timm")
    refused(config, f"{name}' is missing", load=load_image_clip)


TEXT = {"context_length": 16, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
VISION = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
OTHERS = {
    "sound": {"audio_cfg": {}, "text_cfg": TEXT},
    "captions": {"genlip_cfg": {}, "vision_cfg": VISION, "text_cfg": TEXT},
    "any number of patches": {"vision_cfg": {**VISION, "image_seq_len": 4}, "text_cfg": TEXT},
    "another tokenizer": {"vision_cfg": VISION, "text_cfg": {**TEXT, "tokenizer_type": "tiktoken"}},
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("load", [load_clip, load_image_clip])
def test_a_model_that_is_not_a_clip_of_square_images_is_refused(load, kind, monkeypatch):
    monkeypatch.setitem(kdpl.clip.loading._REGISTRY, kind, ({"embed_dim": 8, **OTHERS[kind]}, {}))
    with world.refused(WeightsError, f"{kind} is not a CLIP of square images and texts"):
        load(ClipConfig(kind, "random"))


def test_only_clips_are_listed():
    names = list_models()
    assert set(names) <= {*open_clip.list_models()}
    assert {"ViT-B-16", "RN50", "ViT-B-16-SigLIP2", "coca_ViT-B-32", "nllb-clip-base"} <= {*names}
    assert not any("clap" in name.lower() or "gen" in name.lower() for name in names)
    for name, (config, tags) in known_models().items():
        assert {"vision_cfg", "text_cfg"} <= config.keys(), name
        assert tags or name not in names  # a test may have registered it


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_the_end_of_a_text_has_an_id_where_a_config_names_none(monkeypatch):
    text = {**TEXT, "pool_type": "eos"}
    config = {"embed_dim": 8, "custom_text": True, "vision_cfg": VISION, "text_cfg": text}
    monkeypatch.setitem(kdpl.clip.loading._REGISTRY, "eos", (config, {}))
    assert load_clip(ClipConfig("eos", "random")).text_tower.end == 2


def test_weights_that_cannot_be_fetched_are_one_sentence_with_a_way_without_network():
    origin = "https://huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K;"
    with world.refused(WeightsError, f"{origin}.*clip.quick_gelu false.*--teacher quickstart"):
        load_image_clip(ClipConfig("ViT-B-32", "laion2b_s34b_b79k"))
