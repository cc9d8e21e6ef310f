import pytest

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
