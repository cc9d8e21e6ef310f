from pathlib import Path

import pytest
import yaml
from world import one_sentence

from kdpl.benchmark.campaign import Exceptional, Row, parse_campaign, read_campaign
from kdpl.errors import ConfigError

ROOT = Path(__file__).parents[2]

TEXT = """
protocols: [base_to_novel]
datasets: [dtd, oxford_pets]
seeds: [1, 2]
configs: [configs/trainer/cpu.yaml]
rows:
  teacher: {title: the teacher, teacher: [configs/teacher/quickstart.yaml]}
  student:
    title: "**the student**"
    student: configs/student/quickstart.yaml
    of: teacher
    options: [--model.init_args.temperature=2]
    published: promptkd
per_dataset:
  - {datasets: [dtd], student: configs/student/kd_weight_200.yaml}
"""


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def parsed(**changes):
    return parse_campaign({**yaml.safe_load(TEXT), **changes}, "mine", "mine.yaml")


def test_a_campaign_is_what_its_file_says(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(TEXT)
    campaign = read_campaign(file)
    assert (campaign.name, campaign.protocols, campaign.seeds) == ("mine", ("base_to_novel",), (1, 2))
    assert campaign.datasets == ("dtd", "oxford_pets")
    assert campaign.configs == ("configs/trainer/cpu.yaml",)
    assert campaign.rows == {
        "teacher": Row("teacher", "the teacher", "teacher", ("configs/teacher/quickstart.yaml",)),
        "student": Row(
            "student",
            "**the student**",
            "student",
            ("configs/student/quickstart.yaml",),
            of="teacher",
            options=("--model.init_args.temperature=2",),
            published="promptkd",
        ),
    }
    assert campaign.per_dataset == (Exceptional(("dtd",), (), ("configs/student/kd_weight_200.yaml",)),)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": ["few_shot"]}, ["'protocol'", "protocols"]),
        ({"protocols": ["zero_shot"]}, ["'zero_shot'", "few_shot"]),
        ({"protocols": []}, ["no protocols"]),
        ({"protocols": ["few_shot"]}, ["few_shot needs shots"]),
        ({"protocols": ["cross_dataset"]}, ["cross_dataset needs source"]),
        ({"protocols": ["domain_generalization"], "source": "imagenet"}, ["needs variants"]),
        ({"datasets": []}, ["needs datasets"]),
        ({"datasets": ["dtd", "dtd"]}, ["datasets", "twice"]),
        ({"datasets": ["dtd", "my/dtd.yaml"]}, ["two datasets have one name"]),
        ({"seeds": ["one"]}, ["seeds", "whole numbers"]),
        ({"seeds": [-1]}, ["seeds"]),
        ({"seeds": [True]}, ["seeds"]),
        ({"source": ["imagenet"]}, ["source", "one name"]),
        ({"rows": {}}, ["no rows"]),
        ({"rows": {"a": {"student": "s.yaml"}}}, ["'a'", "of:"]),
        ({"rows": {"a": {"student": "s.yaml", "of": "b"}}}, ["'b'", "teacher"]),
        ({"rows": {"a": {"student": "s.yaml", "of": ["b"]}}}, ["of is ['b']"]),
        ({"rows": {"a": {"teacher": "t.yaml", "of": "a"}}}, ["'a'", "'of:'"]),
        ({"rows": {"a": {"teacher": "t.yaml", "student": "s.yaml"}}}, ["either"]),
        ({"rows": {"a": {"titel": "A", "teacher": "t.yaml"}}}, ["'titel'", "title"]),
        ({"rows": {"a/b": {"teacher": "t.yaml"}}}, ["'a/b'", "letters"]),
        ({"rows": {"a": "t.yaml"}}, ["'a'", "expected settings"]),
        ({"rows": {"a": {"teacher": "t.yaml", "published": "mine"}}}, ["'mine'", "promptkd"]),
        ({"rows": {"a": {"teacher": "t.yaml", "import": "{set}.pt"}}}, ["{set}", "{dataset}"]),
        ({"rows": {"a": {"student": "s.yaml", "of": "a", "import": "x"}}}, ["import"]),
        ({"per_dataset": [{"dataset": "dtd"}]}, ["'dataset'", "datasets"]),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_sentence_that_names_the_file(changes, words):
    with pytest.raises(ConfigError) as error:
        parsed(**changes)
    assert one_sentence(error)
    assert "mine.yaml" in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (("configs/trainer/cpu.yaml", "configs/trainer/tpu.yaml"), "configs/trainer/tpu.yaml"),
        (("datasets: [dtd, oxford_pets]", "datasets: [dtd, pets]"), "configs/data/pets.yaml"),
        (("datasets: [dtd], student", "datasets: [textures], student"), "configs/data/textures.yaml"),
    ],
    ids=["config", "dataset", "exception for a dataset that there is not"],
)
def test_a_config_that_does_not_exist_is_named(change, name, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(TEXT.replace(*change))
    with pytest.raises(ConfigError, match=name):
        read_campaign(file)


def test_a_part_is_chosen_in_the_campaigns_order():
    part = parsed().choose(["oxford_pets"], [2, 1], None)
    assert (part.datasets, part.seeds) == (("oxford_pets",), (1, 2))
    assert parsed().choose(None, None, None) == parsed()


@pytest.mark.parametrize(
    ("choice", "word"),
    [((["pets"], None, None), "pets"), ((None, [3], None), "3"), ((None, None, ["pupil"]), "pupil")],
    ids=["dataset", "seed", "row"],
)
def test_a_choice_that_the_campaign_does_not_have_is_refused(choice, word):
    with pytest.raises(ConfigError, match=word) as error:
        parsed().choose(*choice)
    assert one_sentence(error)
