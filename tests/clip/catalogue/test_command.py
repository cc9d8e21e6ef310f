from runs import refused

from kdpl.__main__ import main
from kdpl.cli.models import COLUMNS


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


def test_a_word_may_be_part_of_a_tag_and_without_one_all_are_listed(capsys):
    assert main(["models", "dfn5b"]) == 0
    header, *some = capsys.readouterr().out.splitlines()
    assert {line.split("\t")[1] for line in some} == {"dfn5b"}
    assert main(["models"]) == 0
    first, *every = capsys.readouterr().out.splitlines()
    assert first == header
    assert {*some} < {*every}
    assert {"tiny-teacher", "test-student"} <= {line.split("\t")[0] for line in every}, (
        "registered ones, too"
    )


def test_a_word_that_no_model_has_is_an_error(capsys):
    refused(capsys, main(["models", "mobilenetv4"]), "'mobilenetv4'")
