"""Rooms that can be removed: in a copy without a room and its lines in pyproject.toml, everything else works."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from runs import SHORT, STAGES, noise

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = PYPROJECT["tool"]["kdpl"]["rooms"]
ALL_COMMANDS = PYPROJECT["project"]["entry-points"]["kdpl.commands"]
DATA = [f"--config={ROOT}/configs/data/digits.yaml", f"--config={ROOT}/configs/trainer/cpu.yaml"]


def without(rooms, copy):
    """Copy the package without these rooms and their lines in pyproject.toml; returns the commands that are left."""
    leave_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "kdpl", copy / "kdpl", ignore=leave_out)
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    for room in rooms:
        shutil.rmtree(copy / "kdpl" / room)
        own = re.compile(rf'"kdpl\.{room}\.|^{room} = \[.*\]$')
        lines = [line for line in lines if not own.search(line)]
    text = "\n".join(lines)
    (copy / "pyproject.toml").write_text(text, encoding="utf-8")
    about = copy / "kdpl-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.4\nName: kdpl\nVersion: 0.1.0\n")
    groups = tomllib.loads(text)["project"]["entry-points"]
    parts = [f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in names.items()) for group, names in groups.items()]
    (about / "entry_points.txt").write_text("\n".join(parts))
    return {*groups["kdpl.commands"]}


def call(copy, *args):
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *map(str, args)], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


IMPORT_ALL = """
import pkgutil, kdpl
from pathlib import Path

for module in pkgutil.walk_packages(kdpl.__path__, "kdpl."):
    # what the report shows of a room goes with the report
    shown = ".report" in module.name and not (Path(kdpl.__path__[0]) / "report").exists()
    if not module.name.endswith("__main__") and not shown:
        __import__(module.name)
print(kdpl.__file__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("room", [*ROOMS, "all of them"])
def test_a_project_without_a_room_runs_both_stages_and_predicts(room, tmp_path):
    copy = tmp_path / "copy"
    gone = {room, *(other for other, needed in ROOMS.items() if room in needed)} if room in ROOMS else {*ROOMS}
    commands = without(gone, copy)
    assert call(copy, "-c", IMPORT_ALL).startswith(str(copy))
    listed = {line.split()[0] for line in call(copy, "-m", "kdpl", "--help").splitlines() if line.startswith("  ")}
    assert {"run", "predict", *commands} <= listed
    assert not listed & (ALL_COMMANDS.keys() - commands)
    call(copy, "-m", "kdpl", "run", *DATA, *STAGES, *SHORT, f"--out={tmp_path}/run")
    noise(64, 64).save(tmp_path / "photo.png")
    rows = call(copy, "-m", "kdpl", "predict", tmp_path / "run/student/classifier", tmp_path / "photo.png")
    assert rows.startswith("path,class,probability,error\n")
    assert len(rows.splitlines()) == 2
