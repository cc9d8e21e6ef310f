import re
from typing import Literal

import pytest
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from kdpl.errors import ArtifactError, ConfigError
from kdpl.runtime.faults import in_one_sentence


@pytest.mark.parametrize(
    ("kind", "value", "match"),
    [
        (int | None, "many", r"shots.*int.* many"),
        (PositiveInt | None, "0", r"shots.*PositiveInt.* 0"),
        (Literal["all", "none"], "some", r"shots.*Literal\['all', 'none'\].* some"),
    ],
)
def test_the_parsers_own_reports_name_setting_and_value_in_one_line(kind, value, match):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--shots", type=kind)
    with pytest.raises(ConfigError, match=match) as error, in_one_sentence():
        parser.parse_args([f"--shots={value}"])
    assert not re.search(r"\n", str(error.value))


@pytest.mark.parametrize(
    ("cause", "kind", "match"),
    [
        (
            ArtifactError("no such file: give another"),
            ArtifactError,
            "^no such file: give another$",
        ),
        (ModuleNotFoundError("No module named 'x'"), ConfigError, "No module named 'x'"),
        (ZeroDivisionError(), ZeroDivisionError, None),
    ],
)
def test_an_own_error_is_raised_as_it_is_a_missing_package_named_and_a_bug_passes(
    cause, kind, match
):
    def build():
        try:
            raise cause
        except ArtifactError as error:
            raise ValueError("cannot be built") from error

    with pytest.raises(kind, match=match), in_one_sentence():
        build()
