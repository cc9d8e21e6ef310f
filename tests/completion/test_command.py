import pytest

from kdpl.__main__ import main


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_commands_and_options(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    for word in ("class-vectors", "predict", "checkpoint_every", "top-k"):
        assert word in out
