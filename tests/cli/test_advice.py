"""Commands that messages advise: each works when it is pasted in another folder."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from rich.console import Console

import kdpl
from kdpl.cli import COMMANDS, STAGES, find_command
from kdpl.cli.arguments import parse
from kdpl.cli.fit import parse_stage
from kdpl.cli.run_defaults import Options
from kdpl.cli.run_summary import summarize
from kdpl.runtime.configs import find_config

COMMAND = re.compile(
    r"python -m kdpl (.+?)(?: tells how| decodes every image|, and give| with labelled|\)|$)", re.M
)


def in_full(capsys):
    Path("my student.yaml").write_text("model: {init_args: {projector_input: pooled}}")
    options = Options(
        ["trainer/cpu"],
        ["quickstart", "configs of mine/teacher.yaml"],
        ["quickstart", "my student.yaml"],
        search=[3e-6],
        settings=["--trainer.max_epochs", "2"],
        seed=3,
    )
    Path("configs of mine").mkdir()
    Path("configs of mine/teacher.yaml").write_text("trainer: {max_epochs: 1}")
    return options.in_full(Path("runs/my pets"))


def after_run(capsys):
    Path("my runs").mkdir()
    summarize(Console(), Path("my runs"), nothing_done=False)
    return capsys.readouterr().out


def missing_data(capsys):
    readers = pytest.importorskip("kdpl.data.readers.benchmark")
    download = pytest.importorskip("kdpl.benchmark.download")
    download.download("imagenet", Path("my data"))
    dataset = readers.BenchmarkSet("eurosat", "my data")
    return f"{capsys.readouterr().out}\n{dataset.damaged(Path('split.json'), 'is empty')}"


ADVICE = [in_full, after_run, missing_data]


@pytest.mark.parametrize("advise", ADVICE)
def test_an_advised_command_is_parsed_in_another_folder(advise, tmp_path, monkeypatch, capsys):
    here, elsewhere = tmp_path / "it's here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(here)
    commands = COMMAND.findall(advise(capsys))
    monkeypatch.chdir(elsewhere)
    assert commands
    for text in commands:
        name, *words = shlex.split(text)
        assert not [
            word
            for word in words
            if "/" in word and (here / word) != Path(word) and (here / word).exists()
        ]
        if name in STAGES:
            assert parse_stage(name, words).folder.is_dir()
            continue
        values = parse(find_command(name), words, name)
        if name == "run":
            for config in values["config"]:
                find_config(config)
            for stage in ("teacher", "student"):
                for config in values[stage]:
                    find_config(config, stage)


def test_each_command_and_config_that_the_source_advises_exists():
    commands, configs = set(), set()
    for file in Path(kdpl.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                commands.update(re.findall(r"python -m kdpl ([a-z][a-z-]+)", node.value))
                configs.update(re.findall(r"--(teacher|student) ([a-z][a-z0-9_]+)", node.value))
    assert {"predict", "run"} & commands
    assert commands <= set(COMMANDS)
    assert ("teacher", "quickstart") in configs
    for kind, name in configs:
        assert Path(find_config(name, kind)).is_file()
