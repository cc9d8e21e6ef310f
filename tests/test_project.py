import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import kdpl

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REQUIREMENT = re.compile(r'\s*"([A-Za-z0-9_-]+)(\[[^\]]*\])?([^"]*)",?')


def name_of(requirement):
    return re.match(r"[A-Za-z0-9_-]+", requirement).group().lower().replace("_", "-")


def make(*args):
    # not as a child of the make that may run these tests
    outer = ("MAKE", "MFLAGS", "PYTHON", "TESTS", "VENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    return subprocess.run(["make", *args], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_wheel_holds_the_package_of_this_version_whole_and_nothing_else(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("kdpl-*.whl"))) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names} == {"kdpl", f"kdpl-{kdpl.__version__}.dist-info"}
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "kdpl").rglob("*") if path.is_file()}
    assert {name for name in names if name.startswith("kdpl/")} == {n for n in ours if "__pycache__" not in n}


def test_every_dependency_has_a_floor_and_its_reason_above_it():
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    metadata = lines[lines.index("dependencies = [") : lines.index("[project.scripts]")]
    found = set()
    for number, line in enumerate(metadata):
        if match := REQUIREMENT.fullmatch(line):
            found.add(match[1])
            assert metadata[number - 1].strip().startswith("# "), f"{match[1]}: no reason above it"
            assert ">=" in match[3] or match[1] == "kdpl", f"{match[1]}: no floor"
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    listed = [*PYPROJECT["project"]["dependencies"], *(each for extra in extras for each in extra)]
    assert {name.lower().replace("_", "-") for name in found} == {name_of(each) for each in listed}
    # not pinned, and past the malicious uploads of Lightning
    requirements = {name_of(each): each for each in listed}
    assert not {"==", "<"} & set(re.findall("==|<", requirements["torch"]))
    assert ">=2.6.6" in requirements["lightning"]


def test_every_import_is_a_declared_dependency_and_those_of_extras_wait_until_they_are_needed():
    project = PYPROJECT["project"]
    core = {name_of(each) for each in project["dependencies"]}
    extras = {
        name_of(each) for key, extra in project["optional-dependencies"].items() if key != "dev" for each in extra
    }
    providers = importlib.metadata.packages_distributions()
    for path in sorted((ROOT / "kdpl").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_once = set(tree.body)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            else:
                continue
            for module in {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"kdpl"}:
                distributions = {name.lower().replace("_", "-") for name in providers.get(module, [])}
                allowed = core if node in at_once else core | extras
                assert distributions & allowed, f"{path.relative_to(ROOT)} imports {module}"


def test_help_is_the_default_and_says_a_line_on_every_target():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split()
    said = make()
    assert said.returncode == 0
    lines = dict(line.split(maxsplit=1) for line in said.stdout.splitlines()[1:])
    assert list(lines) == ["help", *[target for target in targets if target != "help"]]


def test_a_python_that_is_too_old_or_missing_is_named_and_no_environment_is_left(tmp_path):
    old, venv = tmp_path / "python3.10", tmp_path / "venv"
    pretend = "import sys; sys.version_info = (3, 10, 4); exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretend}" "$2"\n', encoding="utf-8")
    old.chmod(0o755)
    too_old = f"kdpl needs Python 3.11 or newer, but {old} is 3.10: set another with PYTHON=…"
    for python, sentence in ((old, too_old), ("no-such-python", "no-such-python does not exist: ")):
        refused = make("test", f"PYTHON={python}", f"VENV={venv}")
        assert refused.returncode != 0
        assert refused.stderr.splitlines()[0].startswith(sentence)
        assert refused.stdout == ""
        assert not venv.exists()


def test_the_quickstart_composes_configs_that_are_there(tmp_path):
    command = make("--dry-run", "quickstart", f"VENV={tmp_path}").stdout.splitlines()[-1]
    configs = re.findall(r"configs/\S+", command)
    assert len(configs) >= 3
    assert [name for name in configs if not (ROOT / name).is_file()] == []


def test_continuous_integration_runs_the_script_on_every_python_that_is_claimed():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(PYPROJECT["project"]["classifiers"]))
    job = workflow["jobs"]["check"]
    assert job["strategy"]["matrix"]["python"] == claimed
    assert "bash .ci/run" in [step.get("run") for step in job["steps"]]
    assert "make lint typecheck test" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_citation_and_changelog_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == kdpl.__version__
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="needs a git checkout")
def test_no_file_names_a_place_on_somebodys_machine():
    # a clone that belongs to another user, as in containers, may be read
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    home = re.compile(rb"(?<![\w.])/(?:home|Users|root|work)/\w[^\s]*")
    files = [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]
    assert len(files) > 50
    found = {str(path.relative_to(ROOT)): home.findall(path.read_bytes()) for path in files if path.is_file()}
    assert {name: places for name, places in found.items() if places} == {}
