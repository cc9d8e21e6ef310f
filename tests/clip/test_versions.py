"""What open_clip 4 has beside 3.3: models that are not CLIPs of square images, and an id that a config must have."""

import open_clip
import pytest
import world
from siglip import CONFIG, write_siglip

import kdpl.clip.loading
from kdpl.clip import ClipConfig, load_clip, load_image_clip
from kdpl.clip.loading import known_models
from kdpl.clip.versions import list_models
from kdpl.errors import WeightsError

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


def test_a_downloaded_config_cannot_let_a_tokenizer_run_code(tmp_path, monkeypatch):
    seen = {}

    def record(*_, **options):
        seen.update(options)
        raise ValueError("seen")

    monkeypatch.setattr(kdpl.clip.loading, "HFTokenizer", record)
    options = {**CONFIG["text_cfg"]["tokenizer_kwargs"], "trust_remote_code": True}
    path = write_siglip(tmp_path / "clip", tokenizer_kwargs=options).path
    with world.refused(WeightsError, "cannot load the tokenizer"):
        load_clip(ClipConfig(f"local-dir:{path}"))
    assert seen == {"clean": "canonicalize", "tokenizer_mode": None}
