import subprocess
import sys

import pytest

import kdpl.__main__ as entry
from kdpl import __version__
from kdpl.__main__ import main
from kdpl.errors import ConfigError


def test_version_and_help_import_nothing_heavy():
    code = (
        "import sys; from kdpl.__main__ import main; main(['--version']); main(['--help']); "
        "print({'torch', 'lightning', 'open_clip', 'wandb'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"kdpl {__version__}\nusage: python -m kdpl COMMAND")
    assert done.stdout.endswith("\nset()\n")
    assert done.stderr == ""


def test_the_module_can_be_run():
    done = subprocess.run([sys.executable, "-m", "kdpl", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"kdpl {__version__}\n"


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_names_every_command(args, capsys):
    assert main(args) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in entry._COMMANDS)
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize("command", ["trian", "--config", "FIT"])
def test_an_unknown_command_is_one_line_that_lists_the_known_ones(command, capsys):
    assert main([command]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: there is no command {command!r}: use one of {', '.join(entry._COMMANDS)}\n"


def fails_with(monkeypatch, error):
    def command(args):
        raise error

    monkeypatch.setattr("kdpl.cli.fit.run_command", command)


def test_an_error_that_a_user_can_mend_is_one_line_and_exit_code_1(monkeypatch, capsys):
    fails_with(monkeypatch, ConfigError("that is wrong: do this"))
    assert main(["fit"]) == 1
    assert capsys.readouterr().err == "error: that is wrong: do this\n"


def test_the_systems_own_errors_name_the_file(monkeypatch, capsys):
    fails_with(monkeypatch, PermissionError(13, "Permission denied", "/runs/a"))
    assert main(["fit"]) == 1
    assert capsys.readouterr().err == "error: /runs/a: Permission denied: check path, permissions and space\n"


@pytest.mark.parametrize("error", [ConfigError("wrong"), PermissionError(13, "no", "f"), KeyboardInterrupt()])
def test_debug_lets_the_traceback_through_wherever_it_stands(monkeypatch, error):
    fails_with(monkeypatch, error)
    for args in (["--debug", "fit"], ["fit", "--debug"]):
        with pytest.raises(type(error)):
            main(args)


def test_a_mistake_of_the_program_is_not_hidden(monkeypatch):
    fails_with(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["fit"])


def test_ctrl_c_is_one_line_and_exit_code_130(monkeypatch, capsys):
    fails_with(monkeypatch, KeyboardInterrupt())
    assert main(["fit"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("command", entry._COMMANDS)
def test_each_command_has_help_of_its_own(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"kdpl {command}" in capsys.readouterr().out or command in ("fit", "validate", "test")


@pytest.mark.parametrize("command", [c for c in entry._COMMANDS if c not in ("fit", "validate", "test")])
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys; from kdpl.__main__ import main\n"
        f"try: main(['{command}', '--help'])\n"
        "except SystemExit as stop: print(stop.code, {'torch', 'lightning', 'open_clip'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: python -m kdpl {command}")
    assert done.stdout.endswith("\n0 set()\n")
