import re
from typing import Literal

import pytest
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from kdpl.errors import ArtifactError, ConfigError
from kdpl.runtime.parse_errors import in_one_line, in_one_sentence


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("unrecognized arguments: --x=4", "unrecognized arguments: --x=4"),
        ("\n", "ValueError"),
        ("x" * 999, "x" * 200),
    ],
)
def test_a_report_becomes_one_line(text, line):
    assert in_one_line(ValueError(text)) == line


@pytest.mark.parametrize(
    ("kind", "value", "match"),
    [
        (int | None, "many", r"^shots is many: .*int"),
        (PositiveInt | None, "0", r"^shots is 0: .*PositiveInt"),
        (Literal["all", "none"], "some", r"^shots: .* Literal\['all', 'none'\].* some"),
    ],
)
def test_the_parsers_own_reports_name_setting_and_value_and_no_python_type(kind, value, match):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--shots", type=kind)
    with pytest.raises(ConfigError, match=match) as error, in_one_sentence():
        parser.parse_args([f"--shots={value}"])
    assert not re.search(r"\n|<class|typing\.|\bSubtypes\b", str(error.value))


def test_an_own_error_within_a_parsers_is_the_one_that_is_raised():
    def build():
        try:
            raise ArtifactError("no such file: give another")
        except ArtifactError as error:
            raise ValueError("cannot be built") from error

    with pytest.raises(ArtifactError, match="no such file"), in_one_sentence():
        build()


def test_a_missing_package_is_named_and_a_bug_passes():
    with pytest.raises(ConfigError, match="No module named 'x'"), in_one_sentence():
        raise ModuleNotFoundError("No module named 'x'")
    with pytest.raises(ZeroDivisionError), in_one_sentence():
        raise ZeroDivisionError
