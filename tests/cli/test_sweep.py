import csv
import math

import pytest
import yaml
from runs import CONFIGS, DATA, SHORT, STUDENT, files_of
from world import one_sentence

from kdpl.__main__ import main
from kdpl.cli import sweep as command
from kdpl.cli.sweep_points import as_options, read_sweep
from kdpl.errors import ConfigError

GRID = {
    "method": "grid",
    "metric": {"name": "val/acc", "goal": "maximize"},
    "parameters": {
        "model.init_args.kd_weight": {"values": [200, 1000]},
        "model.init_args.temperature": {"values": [1, 2]},
    },
}


def write(folder, **changes):
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({**GRID, **changes}), encoding="utf-8")
    return file


def test_a_grid_is_every_combination_in_order(tmp_path):
    points = read_sweep(write(tmp_path)).points(None, seed=1)
    assert [tuple(p.values()) for p in points] == [(200, 1), (200, 2), (1000, 1), (1000, 2)]
    assert as_options(points[1]) == ["--model.init_args.kd_weight=200", "--model.init_args.temperature=2"]


def test_the_student_sweep_draws_within_its_ranges_and_a_longer_one_begins_with_the_shorter():
    sweep = read_sweep(CONFIGS / "sweep/student.yaml")
    points = sweep.points(None, seed=1)
    assert len(points) == 12
    assert all(0.0003 <= p["model.init_args.optim.lr"] <= 0.01 for p in points)
    assert {p["model.init_args.vision_prompts.depth"] for p in points} == {1, 2}
    assert sweep.points(20, seed=1)[:12] == points != sweep.points(12, seed=2)
    logs = [math.log(p["model.init_args.optim.lr"]) for p in sweep.points(400, seed=3)]
    assert abs(sum(logs) / 400 - (math.log(0.0003) + math.log(0.01)) / 2) < 0.2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "bayes"}, "grid or random"),
        ({"metric": {"name": "test/acc"}}, "nothing may be chosen on test images"),
        ({"metric": None}, "no metric"),
        ({"parameters": {}}, "no parameters"),
        ({"parameters": {"a": {"min": 0, "max": 1}}}, "which a grid needs"),
        ({"method": "random", "parameters": {"a": {"min": 2, "max": 1}}}, "ranges from 2 to 1"),
        ({"method": "random", "parameters": {"a": {"distribution": "beta", "min": 1, "max": 2}}}, "distribution beta"),
    ],
)
def test_what_a_sweep_cannot_be_is_said_in_one_sentence(changes, said, tmp_path):
    with pytest.raises(ConfigError, match=said) as error:
        read_sweep(write(tmp_path, **changes))
    assert one_sentence(error)


def test_a_sweep_runs_its_fits_ranks_them_and_does_nothing_the_second_time(tmp_path, teacher_run, capfd):
    out = tmp_path / "sweep"
    fit = [*DATA, *STUDENT, *SHORT, "--trainer.max_epochs=1", f"--model.init_args.teacher={teacher_run}"]
    args = ["sweep", str(write(tmp_path)), f"--out={out}", *fit]
    assert main(args) == 0
    with (out / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["run"] for row in rows) == ["001", "002", "003", "004"]
    values = [float(row["val/acc"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert f"python -m kdpl test --config {out}/{rows[0]['run']}/config.yaml" in capfd.readouterr().out
    for row in rows:
        settings = yaml.safe_load((out / row["run"] / "config.yaml").read_text())["model"]["init_args"]
        assert settings["kd_weight"] == float(row["model.init_args.kd_weight"])
    before = {name: f for name, f in files_of(out).items() if "/" in name}
    assert main(args) == 0
    assert {name: f for name, f in files_of(out).items() if "/" in name} == before
    assert main([*args, "--seed=2"]) == 1
    assert "holds a sweep with other settings (--seed)" in capfd.readouterr().err


@pytest.mark.parametrize(("code", "fits"), [(130, 1), (143, 1), (75, 1), (1, 4)])
def test_a_fit_that_was_ended_from_outside_ends_the_sweep_and_one_that_failed_does_not(
    code, fits, tmp_path, teacher_run, monkeypatch
):
    begun = []

    def step(function, argument):
        if function is command.check_fits:
            return 0
        begun.append(argument)
        return code

    monkeypatch.setattr(command, "in_own_process", step)
    args = [str(write(tmp_path)), f"--out={tmp_path / 'sweep'}", *DATA, *STUDENT]
    assert command.sweep(args) == code
    assert len(begun) == fits
