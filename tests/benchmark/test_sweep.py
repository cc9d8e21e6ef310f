"""The native W&B sweep file, turned into a command as W&B's agent does it."""

import subprocess
import sys

import pytest
import yaml
from campaigns import ROOT
from runs import SHORT

from kdpl.__main__ import main

SWEEP = yaml.safe_load((ROOT / "configs/sweep/student.yaml").read_text())


def command_of(parameters, interpreter=sys.executable):
    """The command of a run, with the macros of W&B's agent filled in."""
    args = [f"--{name}={value}" for name, value in parameters.items()]
    macros = {"${env}": ["/usr/bin/env"], "${interpreter}": [interpreter], "${args}": args}
    return [word for part in SWEEP["command"] for word in macros.get(part, [part])]


def test_each_run_has_a_folder_of_its_own(monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    command = command_of({"model.init_args.kd_weight": 200}, "echo")
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("-m kdpl fit ")
    assert said.endswith(" --model.init_args.kd_weight=200 --out=runs/sweep/abc\n")


@pytest.mark.parametrize("end", [0, -1], ids=["first values", "last values"])
def test_the_parameters_are_settings_of_fit(end, tmp_path, teacher_run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    ends = {name: each.get("values") or [each["min"], each["max"]] for name, each in SWEEP["parameters"].items()}
    command = command_of({name: values[end] for name, values in ends.items()})
    fit = [word for word in command[command.index("fit") :] if "logger/wandb" not in word]
    own = [f"--model.init_args.teacher={teacher_run}", f"--out={tmp_path / 'run'}"]
    assert main([*fit, *SHORT, "--trainer.max_epochs=1", *own]) == 0
    settings = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["model"]["init_args"]
    assert settings["kd_weight"] == ends["model.init_args.kd_weight"][end]
    assert settings["optim"]["lr"] == ends["model.init_args.optim.lr"][end]
    header = (tmp_path / "run/metrics.csv").read_text().splitlines()[0]
    assert SWEEP["metric"] == {"name": "val/acc", "goal": "maximize"}
    assert "val/acc" in header.split(",")
