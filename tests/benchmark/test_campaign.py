from pathlib import Path

import pytest
import yaml
from world import refused

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
    options: [--model.init_args.loss.temperature=2]
    published: promptkd
per_dataset:
  - {datasets: [dtd], student: configs/student/kd_weight_200.yaml}
"""
TEACHER, OF_A = {"teacher": "t.yaml"}, {"student": "s.yaml", "of": "a"}


def test_a_campaign_is_read_from_its_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(TEXT)
    campaign = read_campaign(file)
    student = campaign.rows["student"]
    assert (student.stage, student.of) == ("student", "teacher")
    assert student.configs == ("configs/student/quickstart.yaml",)
    part = campaign.choose(["oxford_pets"], [2, 1])
    assert (part.datasets, part.seeds) == (("oxford_pets",), (1, 2))
    assert campaign.choose() == campaign


def test_an_invalid_campaign_is_one_sentence_that_names_the_file_and_the_place():
    other = {"rows": {"a": {"student": "s.yaml", "of": "b"}}}
    apart = {"rows": {"a": {**TEACHER, "protocols": "few_shot"}, "b": OF_A}}
    for changes, word in (
        ({"protocol": ["few_shot"]}, "protocol: Extra inputs"),
        ({"protocols": ["few_shot"]}, "few_shot needs shots"),
        ({"datasets": ["dtd", "dtd"]}, "datasets names something twice"),
        ({"datasets": ["dtd", "my/dtd.yaml"]}, "two datasets have one name"),
        ({"rows": {"a": {"student": "s.yaml"}}}, "rows.a needs 'of:'"),
        (other, "'b', which is not the row of a teach"),
        ({"rows": {"a": {**TEACHER, "student": "s.yaml"}}}, "rows.a needs either"),
        ({"rows": {"a/b": TEACHER}}, "'a/b' names a folder"),
        (apart, "row 'b' is run where its teacher 'a' is not"),
    ):
        with refused(ConfigError, f"^campaign mine.yaml: .*{word}"):
            parse_campaign({**yaml.safe_load(TEXT), **changes}, Path("mine.yaml"))


@pytest.mark.parametrize(
    "known", ["trainer/cpu", "oxford_pets", "dtd], student"], ids=["setting", "data", "exception"]
)
def test_a_config_that_does_not_exist_is_named(known, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(TEXT.replace(known, f"un{known}"))
    with refused(ConfigError, "configs/(untrainer/cpu|data/(unoxford_pets|undtd)).yaml"):
        read_campaign(file)
