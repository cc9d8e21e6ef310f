import hashlib
import importlib.metadata
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
import world
from plain import relative_error
from safetensors.torch import save_file
from torch import nn

import kdpl.clip.loading
from kdpl.clip import ClipConfig, Preprocessing, PromptableImageTower, load_clip, load_image_clip, register_model
from kdpl.clip.families import require_image_tower, text_family
from kdpl.clip.loading import build_image_tower, fingerprint, image_config
from kdpl.errors import ConfigError, WeightsError
from kdpl.prompts import VisionPrompts

NAME = "test-teacher"
QUICK = "test-teacher-quickgelu"


def refused(config, match, kind=WeightsError):
    with world.refused(kind, match):
        load_clip(config)


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
        assert clip.preprocessing == Preprocessing(32, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        assert clip.tokenize(["crab", "a blue whale"]).shape == (2, 77)
        assert (clip.identity.model, clip.identity.pretrained, clip.identity.quick_gelu) == (NAME, world.TAG, False)
        assert load_clip(ClipConfig(QUICK, world.TAG)).identity.quick_gelu

    def test_other_packages_add_models_through_an_entry_point(self, monkeypatch):
        def register():
            register_model("test-entered", world.CONFIGS[NAME], {"t": lambda: world.weights(NAME)})

        entry = importlib.metadata.EntryPoint("x", "x:y", "kdpl.models")
        monkeypatch.setattr(type(entry), "load", lambda _: register)
        monkeypatch.setattr("kdpl.clip.loading.entry_points", lambda group: [entry] if group == "kdpl.models" else [])
        assert same_weights(load_clip(ClipConfig("test-entered", "t")))

    def test_random_weights_are_the_same_each_time_and_said_to_be_random(self):
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        with pytest.warns(UserWarning, match="test-teacher has random weights"):
            one = load_clip(ClipConfig(NAME, "random"))
        assert torch.equal(torch.random.get_rng_state(), before), "the caller's random stream is its own"
        torch.manual_seed(2)
        with pytest.warns(UserWarning, match="random weights"):
            other = load_clip(ClipConfig(NAME, "random"))
        assert one.identity == other.identity
        assert not same_weights(one)

    def test_the_image_tower_alone_is_that_of_the_whole_clip(self, clip_of, images):
        clip = clip_of(QUICK)
        tower = build_image_tower(image_config(QUICK), clip.preprocessing)
        tower.visual.load_state_dict(clip.image_tower.visual.state_dict())
        assert torch.equal(tower(images), clip.image_tower(images))
        assert set(image_config(QUICK)) == {"embed_dim", "vision_cfg", "quick_gelu"}
        assert image_config("ViT-B-16")["embed_dim"] == 512


class TestFingerprint:
    def test_one_weight_more_or_less_changes_it(self):
        state = {k: v for k, v in world.weights(NAME).items() if k.startswith("visual.")}
        changed = {k: v.clone() for k, v in state.items()}
        changed["visual.transformer.resblocks.2.mlp.c_proj.bias"][47] += 1e-6
        renamed = {k.replace("ln_pre", "ln_pro"): v for k, v in state.items()}
        reshaped = {**state, "visual.proj": state["visual.proj"].view(24, 48)}
        fewer = dict(list(state.items())[1:])
        digests = [fingerprint(s.items()) for s in (state, changed, renamed, reshaped, fewer)]
        assert len(set(digests)) == 5
        assert fingerprint(reversed(state.items())) == digests[0], "the order does not matter"
        assert len(digests[0]) == 32

    def test_a_clip_carries_that_of_its_image_tower(self, clip_of):
        visual = {k.removeprefix("visual."): v for k, v in world.weights(NAME).items() if k.startswith("visual.")}
        assert clip_of(NAME).identity.fingerprint == fingerprint(visual.items())
        assert clip_of(NAME).identity.fingerprint != clip_of("test-student").identity.fingerprint


class TestNames:
    @pytest.mark.parametrize(
        ("name", "close"), [("ViT-B16", "ViT-B-16"), ("vit-l-14", "ViT-L-14"), ("test-techer", NAME)]
    )
    def test_an_unknown_model_gets_close_ones(self, name, close):
        refused(ClipConfig(name, "openai"), f"no CLIP model is called '{name}': use a name .*{close}")

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("ViT-B-16-SigLIP", "its tokenizer is not CLIP's"),
            ("roberta-ViT-B-32", "its text tower is a Hugging Face model"),
            ("nllb-clip-base", "its text tower is a Hugging Face model"),
            ("EVA02-B-16", "its text tower is a separate module"),
            ("MobileCLIP-S1", "its text tower is a separate module"),
            ("ViT-H-14-CLIPA", "its tokenizer is not CLIP's"),
        ],
    )
    def test_a_text_tower_that_cannot_be_prompted_is_named(self, name, reason):
        refused(
            ClipConfig(name, "random"), rf"{name} cannot be a teacher, because ({reason}): use a CLIP of OpenAI's kind"
        )

    @pytest.mark.parametrize("load", [load_clip, load_image_clip])
    def test_an_image_tower_that_cannot_be_used_at_all_is_named(self, load):
        with world.refused(WeightsError, "coca_ViT-B-32 cannot be used, because it is a CoCa"):
            load(ClipConfig("coca_ViT-B-32", "random"))

    def test_towers_of_openais_kind_alone_can_be_prompted(self, monkeypatch):
        monkeypatch.setattr("kdpl.clip.loading._build", lambda _: SimpleNamespace(visual=nn.Identity()))
        monkeypatch.setattr("kdpl.clip.families._has_clip_blocks", lambda _: True)
        kinds = {}
        for name in open_clip.list_models():
            config = open_clip.get_model_config(name)
            if "multimodal_cfg" not in config:
                tower = build_image_tower(config, Preprocessing(224, (0.5,) * 3, (0.5,) * 3))
                kinds[name] = isinstance(tower, PromptableImageTower)
        for name in ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-g-14", "ViT-L-14-quickgelu"):
            assert kinds[name], name
        for name in ("RN50", "convnext_base", "ViT-B-16-SigLIP", "EVA02-B-16", "MobileCLIP-S1", "ViT-H-14-CLIPA"):
            assert not kinds[name], name

    @pytest.mark.parametrize(
        ("part", "change", "reason"),
        [
            ("vision_cfg", {"image_size": [32, 48]}, "its image tower is not square"),
            ("text_cfg", {"no_causal_mask": True}, "its text tower has no causal mask"),
            ("text_cfg", {"pool_type": "last"}, "its text tower does not pool at the end of text"),
            ("text_cfg", {"embed_cls": True}, "its text tower does not pool at the end of text"),
            ("text_cfg", {"proj_type": "none"}, "its text projection is not a matrix"),
            ("text_cfg", {"proj_bias": True}, "its text projection is not a matrix"),
            ("text_cfg", {"hf_tokenizer_name": "x"}, "its tokenizer is not CLIP's"),
            ("text_cfg", {"block_type": "custom"}, "the blocks of its text tower are not CLIP's"),
        ],
    )
    def test_a_registered_model_of_another_kind_is_refused_too(self, part, change, reason, monkeypatch):
        config = {**world.CONFIGS[NAME], part: {**world.CONFIGS[NAME][part], **change}}
        monkeypatch.setitem(kdpl.clip.loading._REGISTRY, "test-odd", kdpl.clip.loading._Registered(config, {}))
        refused(ClipConfig("test-odd", "random"), f"test-odd cannot be (used|a teacher), because {reason}")

    @pytest.mark.parametrize(("name", "tags"), [(NAME, world.TAG), ("ViT-B-16", "openai, ")])
    def test_an_unknown_tag_gets_the_known_ones(self, name, tags, monkeypatch):
        monkeypatch.setattr("kdpl.clip.loading._build", lambda _: None)
        refused(ClipConfig(name, "opnai"), f"{name} has no weights called 'opnai': use one of {tags}")


@pytest.fixture
def tag(monkeypatch, tmp_path):
    """A pretrained tag ``hub`` of both test teachers, whose download gives a local file; change it through the dict."""
    path = tmp_path / "downloaded.pt"
    torch.save(world.weights(NAME), path)
    entry = {"url": "https://example.org/weights.pt", "quick_gelu": False}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _, name: entry if name == "hub" else {})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: str(path))
    return entry


class TestTags:
    @pytest.mark.usefixtures("tag")
    def test_the_downloaded_file_is_loaded(self):
        clip = load_clip(ClipConfig(NAME, "hub"))
        assert same_weights(clip)
        assert clip.identity.pretrained == "hub"

    def test_the_tags_own_normalisation_is_used(self, tag, images):
        tag.update(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
        clip = load_clip(ClipConfig(NAME, "hub"))
        assert clip.preprocessing == Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
        pixels = images.double() / 255
        normalised = (pixels - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(
            3, 1, 1
        )
        first = (normalised[:, None, :, :8, :8] * world.weights(NAME)["visual.conv1.weight"].double()).flatten(2).sum(2)
        expected = first + world.weights(NAME)["visual.positional_embedding"][1].double()
        assert relative_error(clip.image_tower.embed(images)[:, 1], expected) < 1e-5

    @pytest.mark.parametrize(
        ("model", "quick", "trained", "has", "right"),
        [(NAME, True, "QuickGELU", "GELU", QUICK), (QUICK, False, "GELU", "QuickGELU", NAME)],
    )
    def test_another_activation_is_refused_with_the_right_model(self, model, quick, trained, has, right, tag):
        tag["quick_gelu"] = quick
        match = f"'hub' were trained with {trained} but {model} has {has}: use model {right}$"
        refused(ClipConfig(model, "hub"), match)

    def test_every_mismatch_in_open_clips_own_list_is_refused_with_a_model_that_is_there(self, monkeypatch):
        class TooFarError(Exception):
            pass

        def too_far(*_):
            raise TooFarError

        monkeypatch.setattr("kdpl.clip.loading._build", lambda _: None)
        monkeypatch.setattr("kdpl.clip.weights._require_resize", too_far)
        refusals = 0
        for model, name in open_clip.list_pretrained():
            config = open_clip.get_model_config(model)
            try:
                require_image_tower(model, config)
                text_family(model, config)
            except WeightsError:
                continue
            wants = bool(open_clip.get_pretrained_cfg(model, name).get("quick_gelu", False))
            if wants == bool(config.get("quick_gelu", False)):
                with pytest.raises(TooFarError):
                    load_clip(ClipConfig(model, name))
                continue
            refusals += 1
            with pytest.raises(WeightsError, match=r"were trained with .*: use model (\S+)$") as error:
                load_clip(ClipConfig(model, name))
            right = str(error.value).rsplit(" ", 1)[1]
            assert bool(open_clip.get_model_config(right).get("quick_gelu", False)) == wants
            assert open_clip.get_pretrained_cfg(right, name), f"{right} has no {name}"
        assert refusals > 10

    @pytest.mark.usefixtures("tag")
    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (OSError("no route to host\nwith a long trace"), "no route to host"),
            (FileNotFoundError("Failed to download file (open_clip_model.safetensors)"), "Failed to download file"),
            (ValueError(), "ValueError"),
        ],
    )
    def test_a_download_that_fails_is_one_sentence(self, error, reason, monkeypatch):
        def fail(cfg):
            raise error

        monkeypatch.setattr(open_clip, "download_pretrained", fail)
        match = rf"cannot fetch the weights 'hub' of {NAME} \({reason}.*\): fetch them where there is a network"
        refused(ClipConfig(NAME, "hub"), match)

    def test_weights_that_want_another_resize_are_refused(self, tag):
        tag.update(resize_mode="squash")
        refused(ClipConfig(NAME, "hub"), "'hub' wants images resized in another way")

    @pytest.mark.usefixtures("tag")
    def test_a_tag_of_another_architecture_is_refused(self):
        refused(ClipConfig("test-student", "hub"), r"does not hold the weights of test-student \(.*\): use the model")


class Node(nn.Module):
    """A tree of modules with the names of a state dict and no forward of its own, as an archive has them."""

    def __init__(self, state):
        super().__init__()
        children = {}
        for name, tensor in state.items():
            head, _, rest = name.partition(".")
            if rest:
                children.setdefault(head, {})[rest] = tensor
            else:
                self.register_parameter(head, nn.Parameter(tensor, requires_grad=False))
        for name, inner in children.items():
            self.add_module(name, Node(inner))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def write_archive(path, half=False):
    """Write weights as OpenAI does: a TorchScript archive with three sizes among the tensors."""
    root = Node({k: v.half() if half and v.ndim > 1 else v for k, v in world.weights(QUICK).items()})
    for name, value in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
        root.register_buffer(name, torch.tensor(value))
    torch.jit.script(root).save(str(path))


class TestFiles:
    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
    def test_a_state_dict_is_loaded(self, suffix, tmp_path):
        path = tmp_path / f"w{suffix}"
        torch.save(world.weights(NAME), path)
        clip = load_clip(ClipConfig(NAME, str(path), quick_gelu=False))
        assert same_weights(clip)
        assert clip.identity.pretrained == str(path)

    def test_a_training_checkpoint_of_open_clip_is_loaded(self, tmp_path):
        state = {f"module.{k}": v for k, v in world.weights(NAME).items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": state}, tmp_path / "epoch_3.pt")
        assert same_weights(load_clip(ClipConfig(NAME, str(tmp_path / "epoch_3.pt"), quick_gelu=False)))

    @pytest.mark.parametrize(
        ("metadata", "told"), [({"quick_gelu": "false"}, None), (None, False), ({"format": "pt"}, False)]
    )
    def test_safetensors_are_loaded(self, metadata, told, tmp_path):
        save_file(world.weights(NAME), tmp_path / "w.safetensors", metadata=metadata)
        assert same_weights(load_clip(ClipConfig(NAME, str(tmp_path / "w.safetensors"), quick_gelu=told)))

    def test_half_precision_is_loaded_as_float32(self, tmp_path):
        state = {k: v.half() for k, v in world.weights(NAME).items()}
        save_file(state, tmp_path / "w.safetensors", metadata={"quick_gelu": "false"})
        tower = load_clip(ClipConfig(NAME, str(tmp_path / "w.safetensors"))).image_tower
        assert tower.visual.proj.dtype == torch.float32
        assert torch.equal(tower.visual.proj, state["visual.proj"].float())

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    @pytest.mark.parametrize("half", [False, True])
    def test_an_archive_that_openai_published_is_loaded_and_known_to_want_quickgelu(self, half, tmp_path, monkeypatch):
        write_archive(tmp_path / "ViT.pt", half)
        refused(ClipConfig(QUICK, str(tmp_path / "ViT.pt")), r"whose code would run, and not one of OpenAI's: save its")
        digest = hashlib.sha256((tmp_path / "ViT.pt").read_bytes()).hexdigest()
        monkeypatch.setattr("kdpl.clip.torch_files.openai_digests", lambda: {digest})
        clip = load_clip(ClipConfig(QUICK, str(tmp_path / "ViT.pt")))
        if half:
            assert torch.equal(clip.image_tower.visual.proj, world.weights(QUICK)["visual.proj"].half().float())
        else:
            assert same_weights(clip, QUICK)
        assert clip.text_tower.positional_embedding.dtype == torch.float32
        match = f"trained with QuickGELU but {NAME} has GELU: use model {QUICK}"
        refused(ClipConfig(NAME, str(tmp_path / "ViT.pt")), match)
        match = r"clip\.quick_gelu is False but .*ViT\.pt says True: remove the setting"
        refused(ClipConfig(QUICK, str(tmp_path / "ViT.pt"), quick_gelu=False), match, ConfigError)

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_a_file_that_does_not_say_its_activation_is_refused_until_told(self, suffix, tmp_path):
        path = tmp_path / f"w{suffix}"
        save_file(world.weights(NAME), path) if suffix == ".safetensors" else torch.save(world.weights(NAME), path)
        match = rf"w{suffix} does not say with which activation it was trained: set clip\.quick_gelu to true"
        refused(ClipConfig(NAME, str(path)), match)
        assert same_weights(load_clip(ClipConfig(NAME, str(path), quick_gelu=False)))
        refused(ClipConfig(NAME, str(path), quick_gelu=True), f"with QuickGELU but {NAME} has GELU: use model {QUICK}")
        refused(
            ClipConfig(QUICK, str(path), quick_gelu=False), f"with GELU but {QUICK} has QuickGELU: use model {NAME}"
        )
        assert same_weights(load_clip(ClipConfig(QUICK, str(path), quick_gelu=True)))

    @pytest.mark.parametrize(("said", "model", "right"), [("true", NAME, QUICK), ("false", QUICK, NAME)])
    def test_a_file_that_says_its_activation_is_believed(self, said, model, right, tmp_path):
        path = tmp_path / "w.safetensors"
        save_file(world.weights(NAME), path, metadata={"quick_gelu": said})
        refused(ClipConfig(model, str(path)), f"use model {right}$")
        assert same_weights(load_clip(ClipConfig(right, str(path))))
        contrary = said != "true"
        match = rf"clip\.quick_gelu is {contrary} but .*w\.safetensors says {not contrary}: remove the setting"
        refused(ClipConfig(model, str(path), quick_gelu=contrary), match, ConfigError)

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_a_missing_file_is_named(self, suffix, tmp_path):
        path = tmp_path / f"none{suffix}"
        refused(ClipConfig(NAME, str(path)), f"weights file {path} does not exist: check the path")

    def test_a_file_of_an_unknown_kind_is_named(self, tmp_path):
        (tmp_path / "w.npz").touch()
        refused(ClipConfig(NAME, str(tmp_path / "w.npz")), r"w\.npz is of an unknown kind: use \.bin, \.pt")

    @pytest.mark.parametrize("length", [0, 5, 1000, -1000])
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_a_truncated_file_is_refused(self, suffix, length, tmp_path):
        path = tmp_path / f"w{suffix}"
        save_file(world.weights(NAME), path) if suffix == ".safetensors" else torch.save(world.weights(NAME), path)
        path.write_bytes(path.read_bytes()[:length])
        match = rf"weights file .*w{suffix} (cannot be read|is damaged).*: "
        refused(ClipConfig(NAME, str(path), quick_gelu=False), match)

    @pytest.mark.parametrize("content", [{}, [], 3, {"state_dict": {}}, None], ids=repr)
    def test_a_file_without_weights_is_refused(self, content, tmp_path):
        torch.save(content, tmp_path / "w.pt")
        refused(ClipConfig(NAME, str(tmp_path / "w.pt"), quick_gelu=False), r"w\.pt")

    @pytest.mark.parametrize(
        ("change", "first"),
        [
            (lambda s: s.pop("visual.proj"), "visual.proj is missing"),
            (lambda s: s.update(extra=torch.ones(1)), "extra is unknown"),
            (
                lambda s: s.update({"visual.proj": torch.ones(48, 25)}),
                r"visual.proj has shape \(48, 25\) instead of \(48, 24\)",
            ),
            (lambda s: s.update({"visual.proj": {"a": 1}}), "visual.proj is missing"),
        ],
    )
    def test_weights_of_another_model_are_refused_by_the_first_that_does_not_fit(self, change, first, tmp_path):
        state = dict(world.weights(NAME))
        change(state)
        torch.save(state, tmp_path / "w.pt")
        match = rf"w\.pt does not hold the weights of {NAME} \({first}\): use the model"
        refused(ClipConfig(NAME, str(tmp_path / "w.pt"), quick_gelu=False), match)


class Payload:
    """What a malicious file holds: unpickled, it makes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_would_run_code_does_not(suffix, legacy, tmp_path):
    path, target = tmp_path / f"w{suffix}", tmp_path / "pwned"
    state = {**world.weights("test-student"), "extra": Payload(target)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    refused(
        ClipConfig("test-student", str(path), quick_gelu=False), r"w\..* is damaged or holds more than tensors, which"
    )
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists(), "the file was harmless: this test shows nothing"


class TestImageHalf:
    def test_it_is_the_image_half_of_the_whole(self, clip_of, images):
        half, whole = load_image_clip(ClipConfig(QUICK, world.TAG)), clip_of(QUICK)
        assert torch.equal(half.image_tower(images), whole.image_tower(images))
        assert (half.identity, half.logit_scale, half.preprocessing) == (
            whole.identity,
            whole.logit_scale,
            whole.preprocessing,
        )
        assert not hasattr(half, "text_tower")

    @pytest.mark.parametrize(("name", "kind"), [("test-resnet", "CLIP"), ("test-timm", "CustomTextCLIP")])
    def test_towers_of_other_architectures_give_open_clips_features(self, name, kind):
        half = load_image_clip(ClipConfig(name, world.TAG))
        config = {k: v for k, v in world.CONFIGS[name].items() if k != "custom_text"}
        model = getattr(open_clip, kind)(**config).eval()
        model.load_state_dict(world.weights(name))
        size = config["vision_cfg"]["image_size"]
        images = torch.randint(
            0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
        )
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (half.preprocessing.mean, half.preprocessing.std))
        with torch.no_grad():
            expected = model.encode_image((images / 255 - mean) / std)
        assert relative_error(half.image_tower.train()(images), expected) < 1e-6
        assert half.image_tower.embed_dim == expected.shape[1] == 20
        assert half.preprocessing.image_size == size
        with world.refused(ConfigError, "no tokens that prompts could stand beside"):
            VisionPrompts(2, 2, half.image_tower)

    def test_weights_of_a_whole_clip_in_a_file_serve(self, tmp_path):
        path = tmp_path / "mobile.pt"
        state = world.weights("test-timm")
        torch.save({**state, "logit_scale": state["logit_scale"].reshape(1)}, path)
        half = load_image_clip(ClipConfig("test-timm", str(path), quick_gelu=False))
        assert half.logit_scale == pytest.approx(23)
        assert half.identity.fingerprint == load_image_clip(ClipConfig("test-timm", world.TAG)).identity.fingerprint

    def test_batch_norms_that_did_not_count_their_batches_are_taken(self, tmp_path):
        state = {k: v for k, v in world.weights("test-resnet").items() if not k.endswith("num_batches_tracked")}
        torch.save(state, tmp_path / "rn.pt")
        load_image_clip(ClipConfig("test-resnet", str(tmp_path / "rn.pt"), quick_gelu=False))

    def test_a_missing_weight_of_the_image_tower_is_named(self, tmp_path):
        state = {k: v for k, v in world.weights("test-resnet").items() if k != "visual.bn1.running_mean"}
        torch.save(state, tmp_path / "rn.pt")
        with world.refused(WeightsError, r"visual.bn1.running_mean is missing"):
            load_image_clip(ClipConfig("test-resnet", str(tmp_path / "rn.pt"), quick_gelu=False))
