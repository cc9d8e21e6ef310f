from typing import Literal

import pytest
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveInt

from kdpl.errors import ArtifactError, ConfigError
from kdpl.runtime.faults import in_one_sentence


@pytest.mark.parametrize(
    ("cause", "kind", "match"),
    [
        (ArtifactError("no such file: give another"), ArtifactError, "^no such file: give"),
        (ModuleNotFoundError("No module named 'x'"), ConfigError, "No module named 'x'"),
        (ValueError("a page of text - set `MLFLOW_ALLOW_FILE_STORE=true`"), ConfigError, "^MLflow"),
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


@pytest.mark.parametrize(
    ("kind", "value", "sentence"),
    [
        (int | None, "two", "x is two, expected an integer or null"),
        (float, "fast", "x is fast, expected a number"),
        (bool | None, "maybe", "x is maybe, expected true or false or null"),
        (NonNegativeInt | None, -1, "x is -1, expected an integer of at least 0 or null"),
        (Literal["all", "novel"], "none", "x is none, expected 'all' or 'novel'"),
        (Literal["all"] | PositiveInt, "none", "x is none, expected 'all' or an integer above 0"),
    ],
)
def test_a_value_of_another_type_is_named_with_what_was_expected(kind, value, sentence):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--x", type=kind)
    with pytest.raises(ConfigError) as error, in_one_sentence():
        parser.parse_args([f"--x={value}"])
    assert str(error.value).startswith(f"{sentence}: correct the config or the command line")
