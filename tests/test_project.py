import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from runs import error_line, image_folder

import kdpl
from kdpl.__main__ import main

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def name_of(requirement):
    return re.match(r"[A-Za-z0-9_-]+", requirement).group().lower().replace("_", "-")


PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this package."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "-w", folder]
    subprocess.run([*PIP, "wheel", *options, ROOT], check=True)
    (file,) = folder.glob("kdpl-*.whl")
    return file


@pytest.mark.slow
def test_the_wheel_holds_the_package_of_this_version_whole_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    assert {name.split("/")[0] for name in names} == {"kdpl", f"kdpl-{kdpl.__version__}.dist-info"}
    ours = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "kdpl").rglob("*") if path.is_file()
    }
    ours |= {
        f"kdpl/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert {name for name in names if name.startswith("kdpl/")} == {
        n for n in ours if "__pycache__" not in n
    }


@pytest.mark.slow
def test_an_installed_package_finds_its_configs_by_name_from_any_folder(wheel, tmp_path):
    options = ["--no-deps", f"--target={tmp_path / 'installed'}"]
    subprocess.run([*PIP, "install", *options, wheel], check=True)
    program = "import kdpl.runtime.configs as c; print(c.find_config('promptsrc_vit_l14', 'teacher'), *c.shipped_configs())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    file, *names = found.stdout.split()
    folder = tmp_path / "installed/kdpl/configs"
    assert Path(file) == folder / "teacher/promptsrc_vit_l14.yaml"
    assert Path(file).read_bytes() == (ROOT / "configs/teacher/promptsrc_vit_l14.yaml").read_bytes()
    assert {*names} == {
        p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml")
    }


def test_every_dependency_has_a_floor_and_its_reason_above_it():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    metadata = text[text.index("\ndependencies = [") : text.index("[project.scripts]")]
    found = re.findall(r'^ *(.*)\n {4}"([^"]+)",$', metadata, re.MULTILINE)
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    assert len(found) == sum(map(len, [PYPROJECT["project"]["dependencies"], *extras]))
    assert [each for above, each in found if not above.startswith("# ")] == []
    assert [each for _, each in found if ">=" not in each and not each.startswith("kdpl[")] == []


# extras that an environment lacks on purpose, or dev for all: make base and make floors say so
WITHOUT = os.environ.get("KDPL_WITHOUT", "").split()


def is_installed(name):
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif("dev" in WITHOUT, reason="this environment has no extra")
def test_the_environment_has_every_extra_so_that_no_test_is_skipped():
    extras = PYPROJECT["project"]["optional-dependencies"].items()
    names = {name_of(each) for extra, group in extras if extra not in WITHOUT for each in group}
    assert {name for name in names if not is_installed(name)} == set()


# its classes are those of an extra's; nothing imports it before its command is called
OF_AN_EXTRA = "kdpl.serve"


@pytest.mark.skipif(bool(WITHOUT), reason="needs the packages of all extras")
def test_every_import_is_a_declared_dependency_and_those_of_extras_wait_until_they_are_needed():
    project = PYPROJECT["project"]
    core = {name_of(each) for each in project["dependencies"]}
    groups = [group for name, group in project["optional-dependencies"].items() if name != "dev"]
    extras = {name_of(each) for group in groups for each in group}
    assert core & extras == set()
    providers = importlib.metadata.packages_distributions()
    for path in sorted((ROOT / "kdpl").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = path.is_relative_to(ROOT / OF_AN_EXTRA.replace(".", "/"))
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            for module in (
                {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"kdpl"}
            ):
                allowed = core if node in tree.body and not inside else core | extras
                assert {name_of(name) for name in providers.get(module, [])} & allowed, (
                    f"{path} imports {module}"
                )
            if node in tree.body and not inside:
                assert not any(module.startswith(OF_AN_EXTRA) for module in modules), path


def test_a_python_that_is_too_old_or_missing_is_named_and_no_environment_is_left(tmp_path):
    old, venv = tmp_path / "python3.10", tmp_path / "venv"
    pretend = "import sys; sys.version_info = (3, 10, 4); exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretend}" "$2"\n', encoding="utf-8")
    old.chmod(0o755)
    # not as a child of the make that may run these tests
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    too_old = f"kdpl needs Python 3.11 or newer, but {old} is 3.10: set another with PYTHON=…"
    for python, sentence in ((old, too_old), ("no-such-python", "no-such-python does not exist: ")):
        command = ["make", "test", f"PYTHON={python}", f"VENV={venv}"]
        refused = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert refused.returncode != 0
        assert refused.stderr.splitlines()[0].startswith(sentence)
        assert refused.stdout == ""
        assert not venv.exists()


def test_versions_are_the_same_in_all_files():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(PYPROJECT["project"]["classifiers"]))
    assert workflow["jobs"]["check"]["strategy"]["matrix"]["python"] == claimed
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == kdpl.__version__


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["predict", "{classifier}", "{folder}/pets", "--out={folder}/answers.parquet"], "parquet"),
        (["demo", "{classifier}", "--no-browser"], "demo"),
        (["serve", "{classifier}"], "serve"),
    ],
)
def test_commands_name_the_extra_that_they_lack(
    command, extra, classifier, tmp_path, monkeypatch, capsys
):
    image_folder(tmp_path / "pets")
    for module in ("pyarrow", "pyarrow.parquet", "gradio", "litserve"):
        monkeypatch.setitem(sys.modules, module, None)
    capsys.readouterr()
    assert main([word.format(classifier=classifier, folder=tmp_path) for word in command]) == 1
    assert f"pip install 'kdpl[{extra}]'" in error_line(capsys)
    assert not list(tmp_path.glob("a*"))
