import signal
import subprocess
import sys

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_finaliser_is_not_lost(number):
    code = f"""
import signal, time
from kdpl.runtime.faults import Terminated, handle_signals

class Finalised:
    def __del__(self):
        signal.raise_signal({number.value})

signal.signal(signal.SIGINT, signal.default_int_handler)
handle_signals()
try:
    Finalised()
    time.sleep(60)
except KeyboardInterrupt as error:
    print(isinstance(error, Terminated))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = f"{number == signal.SIGTERM}\n"
    assert (done.stdout, done.stderr, done.returncode) == (expected, "", 0)
