import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from runs import error_line, image_folder

import kdpl
from kdpl.__main__ import main

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def name_of(requirement):
    return re.match(r"[A-Za-z0-9_-]+", requirement).group().lower().replace("_", "-")


PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.mark.slow
def test_the_wheel_is_this_version_whole_and_finds_its_configs_by_name_once_installed(tmp_path):
    options = ["--no-deps", "--no-build-isolation", "-w", tmp_path]
    subprocess.run([*PIP, "wheel", *options, ROOT], check=True)
    (wheel,) = tmp_path.glob("kdpl-*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    assert {name.split("/")[0] for name in names} == {"kdpl", f"kdpl-{kdpl.__version__}.dist-info"}
    package = [path for path in (ROOT / "kdpl").rglob("*") if path.is_file()]
    files = {path.relative_to(ROOT) for path in package if "__pycache__" not in path.parts}
    configs = {path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")}
    files |= {"kdpl" / path for path in configs}
    assert {name for name in names if name.startswith("kdpl/")} == {*map(Path.as_posix, files)}

    options = ["--no-deps", f"--target={tmp_path / 'installed'}"]
    subprocess.run([*PIP, "install", *options, wheel], check=True)
    program = "import kdpl.runtime.configs as c; print(c.find_config('promptsrc_vit_l14', 'teacher'), *c.shipped_configs())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-c", program]
    printed = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
    file, *shipped = printed.split()
    folder = tmp_path / "installed/kdpl/configs"
    assert Path(file) == folder / "teacher/promptsrc_vit_l14.yaml"
    expected = {path.relative_to("configs").with_suffix("").as_posix() for path in configs}
    assert {*shipped} == expected


def test_a_python_that_is_too_old_or_missing_is_named_and_no_environment_is_left(tmp_path):
    old, venv = tmp_path / "python3.10", tmp_path / "venv"
    pretend = "import sys; sys.version_info = (3, 10, 4); exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretend}" "$2"\n')
    old.chmod(0o755)
    # not as a child of the make that may run these tests
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    too_old = f"kdpl needs Python 3.11 or newer, but {old} is 3.10: set another with PYTHON=…"
    for python, said in ((old, too_old), ("no-python", "no-python does not exist: install Python")):
        command = ["make", f"PYTHON={python}", f"VENV={venv}", f"{venv}/.created"]
        refused = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True)
        assert refused.stderr.startswith(said)
        assert not venv.exists()


def test_the_citation_is_of_this_version():
    assert f"\nversion: {kdpl.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_every_dependency_has_a_floor():
    project = PYPROJECT["project"]
    for requirements in (project["dependencies"], *project["optional-dependencies"].values()):
        assert [r for r in requirements if ">=" not in r and not r.startswith("kdpl[")] == []


# extras that an environment lacks on purpose, or dev for all: make base and make floors say so
WITHOUT = os.environ.get("KDPL_WITHOUT", "").split()


@pytest.mark.skipif("dev" in WITHOUT, reason="this environment has no extra")
def test_the_environment_has_every_extra_so_that_no_test_is_skipped():
    extras = PYPROJECT["project"]["optional-dependencies"].items()
    names = {name_of(each) for extra, group in extras if extra not in WITHOUT for each in group}
    assert names <= {name_of(package.name) for package in importlib.metadata.distributions()}


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["predict", "{classifier}", "{folder}/pets", "--out={folder}/answers.parquet"], "parquet"),
        (["serve", "{classifier}"], "serve"),
    ],
)
def test_commands_name_the_extra_that_they_lack(
    command, extra, classifier, tmp_path, monkeypatch, capsys
):
    image_folder(tmp_path / "pets")
    for module in ("pyarrow", "pyarrow.parquet", "litserve"):
        monkeypatch.setitem(sys.modules, module, None)
    capsys.readouterr()
    assert main([word.format(classifier=classifier, folder=tmp_path) for word in command]) == 1
    assert f"pip install 'kdpl[{extra}]'" in error_line(capsys)
    assert not list(tmp_path.glob("a*"))
