from typing import Literal

import pytest
from jsonargparse.typing import PositiveInt

from kdpl.cli.arguments import parse, share
from kdpl.errors import ConfigError


def one(
    source: str,
    images: list[str] = [],  # noqa: B006
    *,
    out: str | None = None,
    top_k: PositiveInt = 1,
    format: Literal["csv", "json"] = "csv",
    tags: list[str] = [],  # noqa: B006
    quick: bool = False,
) -> int:
    """Classify images.

    They may be anything.

    Args:
        top_k: Number of classes.
    """
    return len(images)


def other(*, teacher: list[str], out: str, settings: list[str]) -> int:
    """Hand settings on."""
    return 7


def test_arguments_are_those_of_the_signature():
    defaults = {"images": [], "out": None, "top_k": 1, "format": "csv", "tags": [], "quick": False}
    for argv, values in (
        ([], {}),
        (["--out", "x", "--quick", "a"], {"out": "x", "quick": True, "images": ["a"]}),
        (["--top-k", "3", "--quick"], {"top_k": 3, "quick": True}),
        (["--tags", "a", "b", "--format=json", "--tags=c"], {"tags": [*"abc"], "format": "json"}),
    ):
        assert parse(one, ["s", *argv], "kdpl one") == {"source": "s", **defaults, **values}


def test_wrong_arguments_are_named_in_one_line():
    for argv, words in (
        ([], ["source"]),
        (["s", "--top-k=0"], ["top-k", "0"]),
        (["s", "--format=xml"], ["format", "xml"]),
        (["--source", "s"], ["source"]),
    ):
        with pytest.raises(ConfigError) as error:
            parse(one, argv, "kdpl one")
        assert all(word in str(error.value) for word in [*words, "kdpl one --help"])
        assert "\n" not in str(error.value)


def test_options_of_another_command_are_handed_on():
    argv = ["--teacher=a", "--data.init_args.shots", "4", "--out", "o"]
    argv += ["--trainer.max_epochs=3", "--teacher", "b", "c"]
    assert parse(other, argv, "kdpl other") == {
        "teacher": ["a", "b", "c"],
        "out": "o",
        "settings": ["--data.init_args.shots", "4", "--trainer.max_epochs=3"],
    }
    with pytest.raises(ConfigError, match="teacher"):
        parse(other, ["--out=o"], "kdpl other")


def test_a_share_is_a_number_or_a_percentage_between_nothing_and_all():
    assert share("--sets", "5%") == share("--sets", "0.05") == pytest.approx(0.05)
    assert share("--sets", None) is None
    for value in ("0", "100%", "-5%", "nan"):
        with pytest.raises(ConfigError, match=f"--sets is '{value}', expected a share between"):
            share("--sets", value)
