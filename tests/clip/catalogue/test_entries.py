"""What each CLIP is good for, by rules about its config, and by what open_clip builds from it; the list of them."""

import re

import open_clip
import pytest
import torch
import world
from runs import refused

from kdpl.__main__ import main
from kdpl.cli.models import COLUMNS
from kdpl.clip import Preprocessing, PromptableImageTower
from kdpl.clip.catalogue import (
    UNKNOWN_LICENCE,
    catalogue,
    licence,
    takes_text_prompts,
    takes_visual_prompts,
)
from kdpl.clip.loading import text_tower
from kdpl.clip.towers.building import image_tower
from kdpl.clip.towers.text import PromptableTextTower
from kdpl.clip.versions import list_models

_USABLE = {*list_models()}
PAIRS = [pair for pair in open_clip.list_pretrained() if pair[0] in _USABLE]
NAMES = list(dict.fromkeys(name for name, _ in PAIRS))
PREPROCESSING = Preprocessing(8, (0.5,) * 3, (0.5,) * 3)
SMALL_TEXT = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}


def build(config):
    """Build what open_clip builds from a config, without memory; no tower of Hugging Face, which would be fetched."""
    config = {key: value for key, value in config.items() if key != "custom_text"} | {
        "vision_cfg": {**config["vision_cfg"], "timm_model_pretrained": False},
        "text_cfg": SMALL_TEXT if config["text_cfg"].get("hf_model_name") else config["text_cfg"],
    }
    kind = open_clip.CLIP if takes_text_prompts(config) else open_clip.CustomTextCLIP
    with torch.device("meta"):
        return (open_clip.CoCa if "multimodal_cfg" in config else kind)(**config)


def but_sizes(value):
    """Which settings a config has, and the families of the networks that it names."""
    if isinstance(value, dict):
        return tuple((key, but_sizes(value[key])) for key in sorted(value))
    return re.split("[-_/]", value)[0] if isinstance(value, str) else type(value)


# the first of each kind: others differ in sizes alone, or in the activation
KINDS = {
    but_sizes(open_clip.get_model_config(name)): name
    for name in reversed(NAMES)
    if not name.endswith("quickgelu")
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS.values())
def test_the_rules_agree_with_what_open_clip_builds(name):
    config = open_clip.get_model_config(name)
    model = build(config)
    visual = image_tower(model.visual, config, PREPROCESSING)
    assert takes_visual_prompts(config) == isinstance(visual, PromptableImageTower)
    # tests/clip/towers/test_hugging_face_text.py prompts one of Hugging Face
    is_fetched = config["text_cfg"].get("hf_model_name")
    takes_text = is_fetched or isinstance(text_tower(name, model, 1), PromptableTextTower)
    assert takes_text_prompts(config) == bool(takes_text)
    size = config["vision_cfg"].get("image_size", 224)
    with torch.no_grad():
        features = model.visual(torch.zeros(1, 3, size, size, device="meta"))
    features = features[0] if isinstance(features, tuple) else features
    assert features.shape == (1, config["embed_dim"])


@pytest.mark.parametrize(
    ("model", "tag", "teacher", "student", "extra"),
    [
        ("ViT-L-14-quickgelu", "openai", "text + visual", "prompts", ""),
        ("RN50-quickgelu", "openai", "text", "projector", ""),
        ("coca_ViT-B-32", "laion2b_s13b_b90k", "visual", "prompts", ""),
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", "text + visual", "prompts", "transformers"),
        ("test-resnet", world.TAG, "text", "projector", ""),
    ],
)
def test_a_model_is_listed_with_what_it_is_good_for(model, tag, teacher, student, extra):
    (entry,) = (row for row in catalogue(model) if row.model == model and tag in row.tags)
    assert (entry.teacher, entry.student, entry.extra) == (teacher, student, extra)


def test_every_pretrained_pair_is_listed_once():
    accepted = [row for row in catalogue() if row.model in NAMES]
    listed = [(row.model, tag) for row in accepted for tag in row.tags]
    assert sorted(listed) == sorted(PAIRS)
    assert len(listed) >= 190


@pytest.mark.parametrize(
    ("model", "tag", "expected"),
    [
        ("MobileCLIP2-B", "dfndr2b", "Apple AMLR"),
        ("ViT-H-14-CLIPA-336", "laion2b", "Apache-2.0"),
        ("nllb-clip-base-siglip", "v1", "CC-BY-NC-4.0"),
        ("ViTamin-B", "datacomp1b", UNKNOWN_LICENCE),
    ],
)
def test_a_licence_is_that_of_the_weights(model, tag, expected):
    assert licence(model, tag) == expected


def test_there_is_a_header_and_a_line_for_each_model_and_licence(capsys):
    assert main(["models", "VIT-B-16-QUICKGELU"]) == 0
    header, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert header == [*COLUMNS]
    assert rows == [
        ["ViT-B-16-quickgelu", tags, "224", "text + visual", "prompts", "", licence]
        for tags, licence in [
            ("openai", "MIT"),
            ("dfn2b", "Apple's own"),
            ("metaclip_400m,metaclip_fullcc", "CC-BY-NC-4.0"),
        ]
    ]


def test_a_word_may_be_part_of_a_tag_and_without_one_all_are_listed_and_with_another_none(capsys):
    assert main(["models", "dfn5b"]) == 0
    header, *some = capsys.readouterr().out.splitlines()
    assert {line.split("\t")[1] for line in some} == {"dfn5b"}
    assert main(["models"]) == 0
    first, *every = capsys.readouterr().out.splitlines()
    assert first == header
    assert {*some} < {*every}
    refused(capsys, main(["models", "mobilenetv4"]), "'mobilenetv4'")
