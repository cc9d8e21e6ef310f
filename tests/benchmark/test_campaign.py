from pathlib import Path

import pytest
import yaml
from world import one_sentence

from kdpl.benchmark.campaign import parse_campaign, read_campaign
from kdpl.errors import ConfigError

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


def test_a_campaign_is_read_from_its_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(TEXT)
    campaign = read_campaign(file)
    assert (campaign.protocols, campaign.seeds) == (("base_to_novel",), (1, 2))
    assert campaign.configs == ("configs/trainer/cpu.yaml",)
    student = campaign.rows["student"]
    assert (student.stage, student.configs, student.of) == ("student", ("configs/student/quickstart.yaml",), "teacher")
    assert campaign.per_dataset[0].student == ("configs/student/kd_weight_200.yaml",)
    part = campaign.choose(["oxford_pets"], [2, 1])
    assert (part.datasets, part.seeds) == (("oxford_pets",), (1, 2))
    assert campaign.choose() == campaign


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": ["few_shot"]}, ["protocol is not a setting", "protocols"]),
        ({"protocols": ["zero_shot"]}, ["protocols.0 is 'zero_shot'", "few_shot"]),
        ({"protocols": ["few_shot"]}, ["few_shot needs shots: add 'shots:'"]),
        ({"datasets": ["dtd", "dtd"]}, ["datasets names something twice"]),
        ({"datasets": ["dtd", "my/dtd.yaml"]}, ["two datasets have one name"]),
        ({"seeds": ["one"]}, ["seeds.0 is 'one'", "integer"]),
        ({"seeds": [-1]}, ["seeds.0 is -1"]),
        ({"source": ["imagenet"]}, ["source is ['imagenet']"]),
        ({"rows": {}}, ["rows is {}"]),
        ({"rows": {"a": {"student": "s.yaml"}}}, ["rows.a is a student without a teacher"]),
        ({"rows": {"a": {"student": "s.yaml", "of": "b"}}}, ["row 'a' is of 'b'", "teacher"]),
        ({"rows": {"a": {"teacher": "t.yaml", "of": "a"}}}, ["rows.a", "'of:'"]),
        ({"rows": {"a": {"teacher": "t.yaml", "student": "s.yaml"}}}, ["rows.a needs either"]),
        ({"rows": {"a": {"titel": "A", "teacher": "t.yaml"}}}, ["rows.a.titel", "title", "import"]),
        ({"rows": {"a/b": {"teacher": "t.yaml"}}}, ["'a/b'", "letters"]),
        ({"rows": {"a": "t.yaml"}}, ["rows.a is 't.yaml'"]),
        ({"rows": {"a": {"teacher": "t.yaml", "published": "mine"}}}, ["'mine'", "promptkd"]),
        ({"rows": {"a": {"teacher": "t.yaml", "import": "{set}.pt"}}}, ["{set}", "{dataset}"]),
        ({"rows": {"a": {"student": "s.yaml", "of": "a", "import": "x"}}}, ["import"]),
        ({"per_dataset": [{"student": "s.yaml"}]}, ["per_dataset.0.datasets is missing"]),
    ],
    ids=str,
)
def test_an_invalid_campaign_is_one_sentence_that_names_the_file_and_the_place(changes, words):
    with pytest.raises(ConfigError) as error:
        parse_campaign({**yaml.safe_load(TEXT), **changes}, Path("mine.yaml"))
    assert one_sentence(error)
    assert str(error.value).startswith("campaign mine.yaml: ")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (("configs/trainer/cpu.yaml", "configs/trainer/tpu.yaml"), "configs/trainer/tpu.yaml"),
        (("datasets: [dtd, oxford_pets]", "datasets: [dtd, pets]"), "configs/data/pets.yaml"),
        (("datasets: [dtd], student", "datasets: [textures], student"), "configs/data/textures.yaml"),
    ],
    ids=["config", "dataset", "exception for an unknown dataset"],
)
def test_a_config_that_does_not_exist_is_named(change, name, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(TEXT.replace(*change))
    with pytest.raises(ConfigError, match=name):
        read_campaign(file)
