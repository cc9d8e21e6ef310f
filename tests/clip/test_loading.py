import json
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import world
from plain import relative_error
from safetensors.torch import save_file

from kdpl.clip import ClipConfig, Preprocessing, load_clip, load_image_clip
from kdpl.clip.loading import fingerprint
from kdpl.clip.versions import list_models
from kdpl.clip.weights import preprocessing_of_file
from kdpl.errors import ConfigError, WeightsError
from kdpl.prompts import VisionPrompts

NAME = "test-teacher"
QUICK = "test-teacher-quickgelu"


def refused(config, match, kind=WeightsError, load=load_clip):
    with world.refused(kind, match):
        load(config)


def file(path, state, **metadata):
    """Write weights as safetensors, with metadata, or as ``torch.save`` does."""
    save_file(
        state, path, metadata=metadata or None
    ) if path.suffix == ".safetensors" else torch.save(state, path)
    return str(path)


def same_weights(clip, name=NAME):
    """Whether a loaded Clip holds the weights of a model of the test world."""
    state = world.weights(name)
    visual = clip.image_tower.visual.state_dict()
    text = clip.text_tower.state_dict()
    equal = [torch.equal(v, state[f"visual.{k}"]) for k, v in visual.items()]
    equal += [torch.equal(v, state[k]) for k, v in text.items()]
    assert len(equal) == len(state) - 1, "all but logit_scale"
    return all(equal) and clip.logit_scale == pytest.approx(state["logit_scale"].exp().item())


class TestRegistry:
    def test_a_registered_model_is_loaded_and_taken_apart(self):
        clip = load_clip(ClipConfig(NAME, world.TAG))
        assert same_weights(clip)
        assert clip.logit_scale == pytest.approx(30)
        assert clip.preprocessing == Preprocessing(
            32, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        )
        assert clip.tokenize(["crab", "a blue whale"]).shape == (2, 77)
        assert (clip.identity.model, clip.identity.pretrained, clip.identity.quick_gelu) == (
            NAME,
            world.TAG,
            False,
        )
        assert load_clip(ClipConfig(QUICK, world.TAG)).identity.quick_gelu

    def test_random_weights_are_the_same_each_time_and_said_to_be_random(self):
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.random.get_rng_state()
            with pytest.warns(UserWarning, match="test-teacher has random weights"):
                found.append(load_clip(ClipConfig(NAME, "random")))
            assert torch.equal(torch.random.get_rng_state(), before), (
                "the caller's random stream is its own"
            )
        assert found[0].identity == found[1].identity
        assert not same_weights(found[0])

    def test_a_fingerprint_changes_with_each_weight_name_and_shape(self, clip_of):
        state = clip_of(NAME).image_tower.visual.state_dict()
        changed = {k: v.clone() for k, v in state.items()}
        changed["transformer.resblocks.2.mlp.c_proj.bias"][47] += 1e-6
        renamed = {k.replace("ln_pre", "ln_pro"): v for k, v in state.items()}
        reshaped = {**state, "proj": state["proj"].view(24, 48)}
        fewer = dict(list(state.items())[1:])
        digests = [fingerprint(s.items()) for s in (state, changed, renamed, reshaped, fewer)]
        assert len(set(digests)) == 5
        assert (
            fingerprint(reversed(state.items())) == digests[0] == clip_of(NAME).identity.fingerprint
        )
        assert len(digests[0]) == 32


class TestNames:
    @pytest.mark.parametrize(
        ("name", "match"),
        [
            (
                "vit-l-14",
                "no CLIP model is called 'vit-l-14': use a name .*ViT-L-14.* or the address",
            ),
            ("test-techer", f"no CLIP model is called 'test-techer': use a name .*{NAME}"),
            (
                "ViT-B-16-SigLIP",
                r"cannot load the tokenizer 'timm/ViT-B-16-SigLIP' .*: fetch .* as local-dir:PATH",
            ),
            (
                "nllb-clip-base",
                r"cannot load the tokenizer 'facebook/nllb-200-distilled-600M' of nllb-clip-base \(",
            ),
        ],
    )
    def test_a_model_that_is_unknown_or_out_of_reach_is_named(self, name, match):
        if "tokenizer" in match:
            pytest.importorskip("transformers")
        refused(ClipConfig(name, "random"), match)

    def test_a_missing_package_is_named_with_its_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        match = (
            r"ViT-B-16-SigLIP needs the package transformers: pip install 'kdpl\[transformers\]'$"
        )
        refused(ClipConfig("ViT-B-16-SigLIP", "random"), match)

    @pytest.mark.parametrize(("name", "tags"), [(NAME, world.TAG), ("ViT-B-16", "openai, ")])
    def test_an_unknown_tag_or_a_missing_file_gets_the_known_ones(self, name, tags, monkeypatch):
        monkeypatch.setattr("kdpl.clip.loading._build", lambda _: None)
        for tag in ("opnai", "none.pt"):
            refused(
                ClipConfig(name, tag),
                f"{name} has no weights called '{tag}', nor .*: use one of {tags}",
            )


@pytest.fixture
def tag(monkeypatch, tmp_path):
    """A pretrained tag ``hub`` of both test teachers, whose download gives a local file; change it through the dict."""
    path = tmp_path / "downloaded.pt"
    torch.save(world.weights(NAME), path)
    entry = {"url": "https://example.org/weights.pt", "quick_gelu": False}
    monkeypatch.setattr(
        open_clip, "get_pretrained_cfg", lambda _, name: entry if name == "hub" else {}
    )
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: str(path))
    return entry


class TestTags:
    def test_the_tags_own_normalisation_is_used(self, tag, images):
        tag.update(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
        clip = load_clip(ClipConfig(NAME, "hub"))
        assert same_weights(clip)
        assert clip.identity.pretrained == "hub"
        assert clip.preprocessing == Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
        normalised = (images.double() / 255 - mean) / std
        first = (
            (normalised[:, None, :, :8, :8] * world.weights(NAME)["visual.conv1.weight"].double())
            .flatten(2)
            .sum(2)
        )
        expected = first + world.weights(NAME)["visual.positional_embedding"][1].double()
        assert relative_error(clip.image_tower.embed(images)[:, 1], expected) < 1e-5

    @pytest.mark.filterwarnings("ignore:.*random weights")
    @pytest.mark.parametrize("pretrained", ["hub", world.TAG, "random"])
    def test_what_the_config_sets_wins_for_weights_of_any_source(self, pretrained, tag):
        given = {"mean": (0.1, 0.2, 0.3), "resize_mode": "squash", "quick_gelu": True}
        clip = load_image_clip(ClipConfig(NAME, pretrained, **given))
        expected = Preprocessing(32, (0.1, 0.2, 0.3), open_clip.OPENAI_DATASET_STD, "squash")
        assert clip.preprocessing == expected
        assert clip.identity.quick_gelu

    def test_an_interpolation_that_training_drew_is_bicubic(self, tag):
        tag.update(interpolation="random")
        assert load_image_clip(ClipConfig(NAME, "hub")).preprocessing.interpolation == "bicubic"

    @pytest.mark.parametrize(
        ("model", "changes", "match"),
        [
            (
                "test-student",
                {},
                r"does not hold the weights of test-student \(.*\): use the model",
            ),
        ],
    )
    def test_weights_that_do_not_fit_the_model_are_refused(self, model, changes, match, tag):
        tag.update(changes)
        refused(ClipConfig(model, "hub"), match)

    def test_every_pair_of_open_clips_list_has_the_activation_that_its_weights_were_trained_with(
        self, monkeypatch
    ):
        built = []
        monkeypatch.setattr("kdpl.clip.loading._build", built.append)
        monkeypatch.setattr("kdpl.clip.loading._image_half", lambda *_: None)
        usable = {*list_models()}
        pairs = [pair for pair in open_clip.list_pretrained() if pair[0] in usable]
        for model, name in pairs:
            load_image_clip(ClipConfig(model, name))
            either = (open_clip.get_model_config(model), open_clip.get_pretrained_cfg(model, name))
            assert built[-1].get("quick_gelu", False) == any(
                each.get("quick_gelu") for each in either
            ), (model, name)
        assert sum(bool(config.get("quick_gelu")) for config in built) > 50


class CreatesAFile(torch.nn.Module):
    """Its code runs as the archive is loaded, and creates a file of this name."""

    def __init__(self, path):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.path = str(path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, str, bool]:
        return self.weight, self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]) -> None:
        self.weight = torch.from_file(state[1], shared=True, size=4)
        self.path, self.training = state[1], state[2]


class TestFiles:
    def test_a_checkpoint_of_open_clips_training_is_loaded(self, tmp_path):
        state = {f"module.{name}": tensor for name, tensor in world.weights(NAME).items()}
        path = file(tmp_path / "checkpoint.pt", {"epoch": 3, "state_dict": state})
        clip = load_clip(ClipConfig(NAME, path, quick_gelu=False))
        assert same_weights(clip)
        assert clip.identity.pretrained == path

    @pytest.mark.parametrize(
        "model", ["MobileCLIP-S1", "MobileCLIP2-S0", "PE-Core-T-16-384", "ViT-B-16-SigLIP"]
    )
    def test_its_images_are_prepared_as_for_the_models_pretrained_weights(self, model):
        (expected,) = {
            tuple(map(str, (tag["mean"], tag["std"], tag["resize_mode"], tag["interpolation"])))
            for tag in (
                open_clip.get_pretrained_cfg(*pair)
                for pair in open_clip.list_pretrained()
                if pair[0] == model
            )
        }
        shown = preprocessing_of_file(ClipConfig(model, "w.pt"), Path("w.pt"))
        assert (
            tuple(str(tuple(v) if isinstance(v, list) else v) for v in shown.values()) == expected
        )

    def test_where_those_differ_the_config_or_the_file_beside_it_tells(
        self, tag, monkeypatch, tmp_path
    ):
        entries = {"a": {"mean": (0.5,) * 3}, "b": {"resize_mode": "squash"}}
        monkeypatch.setattr(
            open_clip, "list_pretrained", lambda: [(NAME, name) for name in entries]
        )
        monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _, name: entries.get(name, {}))
        path = file(tmp_path / "w.pt", world.weights(NAME))
        mean, std, told = (
            (0.1, 0.2, 0.3),
            (0.4, 0.5, 0.6),
            {"quick_gelu": False, "mean": (0.1, 0.2, 0.3)},
        )
        refused(
            ClipConfig(NAME, path, False),
            r"w\.pt does not say .* differ in mean: set clip\.mean, or put",
        )
        refused(
            ClipConfig(NAME, path, **told), r"differ in resize_mode: set clip\.resize_mode, or put"
        )
        squashed = load_image_clip(ClipConfig(NAME, path, **told, std=std, resize_mode="squash"))
        assert squashed.preprocessing == Preprocessing(32, mean, std, "squash")
        clip = load_clip(ClipConfig(NAME, path, **told, std=std, resize_mode="shortest"))
        assert clip.preprocessing == Preprocessing(32, mean, std)
        beside = tmp_path / "open_clip_config.json"
        beside.write_text(json.dumps({"preprocess_cfg": {"mean": mean, "std": std}}))
        assert load_image_clip(ClipConfig(NAME, path, False)).preprocessing == Preprocessing(
            32, mean, std
        )
        beside.write_text(
            '{"preprocess_cfg": {"resize_mode": "longest", "interpolation": "bilinear"}}'
        )
        usual = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        prepared = load_image_clip(ClipConfig(NAME, path, False)).preprocessing
        assert prepared == Preprocessing(32, *usual, "longest", "bilinear")
        beside.write_text("{}")
        refused(ClipConfig(NAME, path, False), r"open_clip_config\.json has no preprocess_cfg")

    def test_no_setting_is_advised_that_does_not_exist(self, tag, monkeypatch, tmp_path):
        entries = {"a": {"interpolation": "bilinear"}, "b": {}}
        monkeypatch.setattr(
            open_clip, "list_pretrained", lambda: [(NAME, name) for name in entries]
        )
        monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _, name: entries.get(name, {}))
        path = file(tmp_path / "w.pt", world.weights(NAME))
        refused(
            ClipConfig(NAME, path, False),
            r"differ in interpolation: put the weights' open_clip_config\.json",
        )

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_a_file_does_not_say_its_activation_and_the_setting_decides(
        self, suffix, tmp_path, clip_of, images
    ):
        path = file(tmp_path / f"w{suffix}", world.weights(NAME))
        match = rf"w{suffix} does not say with which activation it was trained: set clip\.quick_gelu to true"
        refused(ClipConfig(NAME, path), match)
        for model in (NAME, QUICK):
            for quick_gelu, same in ((False, NAME), (True, QUICK)):
                clip = load_clip(ClipConfig(model, path, quick_gelu=quick_gelu))
                assert same_weights(clip)
                assert clip.identity.quick_gelu == quick_gelu
                expected = clip_of(same).image_tower(images)
                assert torch.equal(clip.image_tower(images), expected)

    @pytest.mark.parametrize("length", [0, -1000])
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_a_truncated_file_is_refused(self, suffix, length, tmp_path):
        path = tmp_path / f"w{suffix}"
        file(path, world.weights(NAME))
        path.write_bytes(path.read_bytes()[:length])
        refused(
            ClipConfig(NAME, str(path), quick_gelu=False),
            rf"w{suffix} cannot be read.*: ",
        )

    @pytest.mark.parametrize("content", [{}, [], {"state_dict": {}}, None], ids=repr)
    def test_a_file_without_weights_is_refused(self, content, tmp_path):
        refused(ClipConfig(NAME, file(tmp_path / "w.pt", content), quick_gelu=False), r"w\.pt")

    @pytest.mark.parametrize(
        ("name", "value", "first"),
        [
            ("visual.proj", None, "visual.proj' is missing"),
            ("visual.proj", {"a": 1}, "visual.proj' is missing"),
            ("extra", torch.ones(1), "extra' is unknown"),
            (
                "visual.proj",
                torch.ones(48, 25),
                r"visual.proj' has shape \(48, 25\) instead of \(48, 24\)",
            ),
        ],
    )
    def test_weights_of_another_model_are_refused_by_the_first_that_does_not_fit(
        self, name, value, first, tmp_path
    ):
        path = file(tmp_path / "w.pt", {**world.weights(NAME), name: value})
        match = rf"w\.pt does not hold the weights of {NAME} \(tensor '{first}\): use the model"
        refused(ClipConfig(NAME, path, quick_gelu=False), match)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_code_in_a_file_does_not_run(self, legacy, tmp_path):
        path, target = tmp_path / "w.pt", tmp_path / "pwned"
        state = {**world.weights("test-student"), "extra": world.Call(Path.touch, target)}
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        config = ClipConfig("test-student", str(path), quick_gelu=False)
        refused(
            config,
            r"w\.pt cannot be read .*: give CLIP weights as a state dict of tensors alone",
        )
        assert not target.exists()
        torch.load(path, weights_only=False)
        assert target.exists(), "the file was harmless: this test shows nothing"

    @pytest.mark.filterwarnings(
        "ignore:.*torch.jit:DeprecationWarning", "ignore:`torch.jit.*` is deprecated"
    )
    def test_code_in_a_torchscript_archive_does_not_run(self, tmp_path):
        trace, path = tmp_path / "trace", tmp_path / "w.pt"
        torch.jit.script(CreatesAFile(trace)).save(path)
        torch.jit.load(path)
        assert trace.exists(), "the file was harmless: this test shows nothing"
        trace.unlink()
        refused(ClipConfig(NAME, str(path), quick_gelu=True), r"w\.pt cannot be read .*TorchScript")
        assert not trace.exists()


class TestImageHalf:
    def test_it_is_the_image_half_of_the_whole(self, clip_of, images):
        half, whole = load_image_clip(ClipConfig(QUICK, world.TAG)), clip_of(QUICK)
        assert torch.equal(half.image_tower(images), whole.image_tower(images))
        for name in ("identity", "logit_scale", "preprocessing"):
            assert getattr(half, name) == getattr(whole, name)
        assert not hasattr(half, "text_tower")

    @pytest.mark.parametrize(
        ("name", "kind"), [("test-resnet", "CLIP"), ("test-timm", "CustomTextCLIP")]
    )
    def test_towers_of_other_architectures_give_open_clips_features(self, name, kind):
        half = load_image_clip(ClipConfig(name, world.TAG))
        config = {k: v for k, v in world.CONFIGS[name].items() if k != "custom_text"}
        model = getattr(open_clip, kind)(**config).eval()
        model.load_state_dict(world.weights(name))
        size = config["vision_cfg"]["image_size"]
        images = world.images_of(torch.tensor([0, 1, 2]), seed=1, size=size)
        mean, std = (
            torch.tensor(v).view(3, 1, 1) for v in (half.preprocessing.mean, half.preprocessing.std)
        )
        with torch.no_grad():
            expected = model.encode_image((images / 255 - mean) / std)
        assert relative_error(half.image_tower.train()(images), expected) < 1e-6
        assert half.image_tower.embed_dim == expected.shape[1] == 20
        assert half.preprocessing.image_size == size
        with world.refused(ConfigError, "no tokens that prompts could stand beside"):
            VisionPrompts(2, 2, half.image_tower)

    def test_weights_of_a_whole_clip_in_a_file_serve(self, tmp_path):
        state = world.weights("test-timm")
        path = file(
            tmp_path / "mobile.pt", {**state, "logit_scale": state["logit_scale"].reshape(1)}
        )
        half = load_image_clip(ClipConfig("test-timm", path, quick_gelu=False))
        assert half.logit_scale == pytest.approx(23)
        assert (
            half.identity.fingerprint
            == load_image_clip(ClipConfig("test-timm", world.TAG)).identity.fingerprint
        )

    def test_a_missing_weight_is_named(self, tmp_path):
        state = dict(world.weights("test-resnet"))
        del state["visual.bn1.running_mean"]
        path = file(tmp_path / "rn.pt", state)
        config = ClipConfig("test-resnet", path, quick_gelu=False)
        refused(config, r"visual.bn1.running_mean' is missing", load=load_image_clip)
