import re
import subprocess
import sys
from unittest.mock import Mock

import pytest

from kdpl.__main__ import main
from kdpl.cli import COMMANDS, STAGES
from kdpl.errors import ConfigError
from kdpl.runtime.faults import Terminated


def heavy_after(calls):
    """Run commands in a new process; returns their standard error, and what they imported."""
    code = f"""
import sys
from contextlib import suppress
from kdpl.__main__ import main
for call in {calls}:
    with suppress(SystemExit):
        main(call)
print({{"torch", "lightning", "open_clip", "wandb"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stderr.splitlines(), done.stdout.splitlines()[-1]


def test_wrong_paths_and_options_are_refused_before_heavy_imports():
    calls = [
        ["run", "--help"],
        ["run", "missing"],
        ["run", "missing", "--teacher", "quikstart"],
        ["predict", "missing", "missing.png"],
        ["predict", "missing", "missing.png", "--optin", "5"],
        ["fit", "--config", "missing.yaml"],
        *([command, "missing"] for command in ("compare", "estimate", "report", "table", "serve")),
        ["compare", "a=missing,elsewhere", "b=missing"],
        ["suggest", "missing", "--out", "out"],
        ["benchmark", "missing.yaml", "--out", "out"],
    ]
    errors, heavy = heavy_after(calls)
    assert len(errors) == len(calls) - 1
    assert all(re.match("error: .*(missing|--optin|\\(quickstart, )", line) for line in errors)
    assert heavy == "set()"


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - set(STAGES)))
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m kdpl {command} ")


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^  ([a-z][a-z-]+) ", out, re.MULTILINE) == [*COMMANDS]
    assert max(map(len, out.splitlines())) <= 100


def test_an_unknown_command_is_one_line_that_lists_the_known_ones(capsys):
    known = ", ".join(COMMANDS)
    for command in ("predictt", "--config", "FIT"):
        assert main([command]) == 2
        error = f"error: there is no command {command!r}: use one of {known}\n"
        assert capsys.readouterr() == ("", error)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("that is wrong: do this"), 1, "error: that is wrong: do this\n"),
        (PermissionError(13, "No", "/a"), 1, "error: /a: No: check path, permissions and disk\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (Terminated(), 143, "terminated\n"),
    ],
)
def test_an_error_is_one_line_unless_debug_asks_for_its_traceback(
    error, code, line, monkeypatch, capsys
):
    monkeypatch.setattr("kdpl.cli.fit.run_command", Mock(side_effect=error))
    assert main(["fit"]) == code
    assert capsys.readouterr().err == line
    if isinstance(error, KeyboardInterrupt):
        assert main(["fit", "--debug"]) == code
        assert capsys.readouterr().err.startswith("Traceback")
    else:
        with pytest.raises(type(error)):
            main(["--debug", "fit"])


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), BrokenPipeError(32, "Broken pipe"), OSError(5, "no file")]
)
def test_a_bug_is_not_hidden(error, monkeypatch):
    monkeypatch.setattr("kdpl.cli.fit.run_command", Mock(side_effect=error))
    monkeypatch.setattr("kdpl.__main__._is_read", lambda _: True)
    with pytest.raises(type(error)):
        main(["fit"])
