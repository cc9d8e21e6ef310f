import subprocess
import sys

import pytest

from kdpl import __version__
from kdpl.__main__ import COMMANDS, STAGES, main
from kdpl.errors import ConfigError
from kdpl.runtime.faults import Terminated


@pytest.mark.slow
def test_help_of_each_command_lists_its_options_and_imports_nothing_heavy():
    code = f"""
import sys
from kdpl.__main__ import main
for command in {[command for command in COMMANDS if command not in STAGES]}:
    try:
        main([command, "--help"])
    except SystemExit as stop:
        assert stop.code == 0
    print({{"torch", "lightning", "open_clip", "wandb"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    helps = done.stdout.split("set()\n")
    assert helps.pop() == ""
    for command, text in zip([command for command in COMMANDS if command not in STAGES], helps, strict=True):
        assert text.startswith(f"usage: python -m kdpl {command} ")
        assert "--help" in text


@pytest.mark.slow
def test_the_module_can_be_run():
    done = subprocess.run([sys.executable, "-m", "kdpl", "--version"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"kdpl {__version__}\n", "")


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_names_every_command(args, capsys):
    assert main(args) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in COMMANDS)
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize("command", ["trian", "--config", "FIT"])
def test_an_unknown_command_is_one_line_that_lists_the_known_ones(command, capsys):
    assert main([command]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: there is no command {command!r}: use one of {', '.join(COMMANDS)}\n"


def raising(monkeypatch, error):
    def command(args):
        raise error

    monkeypatch.setattr("kdpl.cli.fit.run_command", command)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("that is wrong: do this"), 1, "error: that is wrong: do this\n"),
        (PermissionError(13, "No", "/a"), 1, "error: /a: No: check path, permissions and disk\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (Terminated(), 143, "terminated\n"),
    ],
)
def test_an_error_is_one_line_unless_debug_asks_for_its_traceback(error, code, line, monkeypatch, capsys):
    raising(monkeypatch, error)
    assert main(["fit"]) == code
    assert capsys.readouterr().err == line
    for args in (["--debug", "fit"], ["fit", "--debug"]):
        with pytest.raises(type(error)):
            main(args)


@pytest.mark.parametrize("error", [ZeroDivisionError(), BrokenPipeError(32, "Broken pipe"), OSError(5, "no file")])
def test_a_bug_is_not_hidden(error, monkeypatch):
    raising(monkeypatch, error)
    monkeypatch.setattr("kdpl.runtime.faults.reader_is_gone", lambda: False)
    with pytest.raises(type(error)):
        main(["fit"])


@pytest.mark.slow
def test_output_that_nothing_reads_ends_a_command_without_a_word():
    code = "import sys; from kdpl.__main__ import main; sys.exit(main(['completion', 'bash']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_commands_and_options(shell, capsys):
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    for word in ("class-vectors", "predict", "checkpoint_every", "top-k"):
        assert word in out
