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


def phony_targets():
    return re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--no-deps", "--no-build-isolation", "-w", folder, ROOT], check=True)
    with zipfile.ZipFile(next(folder.glob("kdpl-*.whl"))) as archive:
        yield archive


# --- the package ---


def test_the_wheel_holds_the_package_of_this_version_whole_and_nothing_else(wheel):
    assert {name.split("/")[0] for name in wheel.namelist()} == {"kdpl", f"kdpl-{kdpl.__version__}.dist-info"}
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "kdpl").rglob("*") if path.is_file()}
    assert {name for name in wheel.namelist() if name.startswith("kdpl/")} == {
        name for name in ours if "__pycache__" not in name
    }


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


def test_torch_and_lightning_are_not_pinned_and_lightning_is_past_the_malicious_uploads():
    requirements = {name_of(each): each for each in PYPROJECT["project"]["dependencies"]}
    assert "==" not in requirements["torch"]
    assert "<" not in requirements["torch"]
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


# --- make ---


def test_help_is_the_default_and_says_a_line_on_every_target():
    said = make()
    assert said.returncode == 0
    assert said.stdout == make("help").stdout
    lines = dict(line.split(maxsplit=1) for line in said.stdout.splitlines()[1:])
    assert list(lines) == ["help", *[target for target in phony_targets() if target != "help"]]
    assert {"quickstart", "test", "lint", "typecheck", "format", "clean", "table"} <= set(lines)


def test_an_old_python_is_refused_in_one_sentence_and_no_environment_is_left(tmp_path):
    old = tmp_path / "python3.10"
    pretend = "import sys; sys.version_info = (3, 10, 4); exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretend}" "$2"\n', encoding="utf-8")
    old.chmod(0o755)
    refused = make("test", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert refused.returncode != 0
    sentence = f"kdpl needs Python 3.11 or newer, but {old} is 3.10: set another with PYTHON=…"
    assert refused.stderr.splitlines()[0] == sentence
    assert refused.stdout == ""
    assert not (tmp_path / "venv").exists()


def test_a_missing_python_is_named(tmp_path):
    refused = make("quickstart", "PYTHON=no-such-python", f"VENV={tmp_path / 'venv'}")
    assert refused.returncode != 0
    assert refused.stderr.splitlines()[0].startswith("no-such-python does not exist: ")


def test_environment_is_made_once_and_again_when_the_requirements_change(tmp_path):
    venv = tmp_path / "venv"
    venv.mkdir()
    for stamp in (".created", ".installed-quickstart", ".installed-dev"):
        (venv / stamp).touch()
    assert "pip install" not in make("--dry-run", "test", f"VENV={venv}").stdout
    assert "pip install" in make("--dry-run", "test", f"VENV={venv}", "--what-if=pyproject.toml").stdout


def test_the_quickstart_composes_configs_that_are_there(tmp_path):
    command = make("--dry-run", "quickstart", f"VENV={tmp_path}").stdout.splitlines()[-1]
    configs = re.findall(r"configs/\S+", command)
    assert len(configs) >= 3
    assert [name for name in configs if not (ROOT / name).is_file()] == []


# --- what stands around it ---


def test_continuous_integration_runs_the_script_on_every_python_that_is_claimed():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(PYPROJECT["project"]["classifiers"]))
    job = workflow["jobs"]["check"]
    assert job["strategy"]["matrix"]["python"] == claimed
    assert workflow["permissions"] == {"contents": "read"}
    assert "bash .ci/run" in [step.get("run") for step in job["steps"]]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    assert "make lint typecheck test" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_commit_hooks_come_from_the_environment_and_not_from_the_network():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert all(hook["entry"].startswith(".venv/bin/python -m ") for hook in hooks)


def test_citation_and_changelog_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == kdpl.__version__
    assert "arXiv:2403.02781" in [each["value"] for each in citation["preferred-citation"]["identifiers"]]
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="needs a git checkout")
def test_no_file_names_a_place_on_somebodys_machine():
    listed = subprocess.run(
        # a clone that belongs to another user, as in containers, may be read
        ["git", "-c", "safe.directory=*", "ls-files", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    home = re.compile(rb"(?<![\w.])/(?:home|Users|root|work)/\w[^\s]*")
    files = [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]
    assert len(files) > 50
    found = {str(path.relative_to(ROOT)): home.findall(path.read_bytes()) for path in files if path.is_file()}
    assert {name: places for name, places in found.items() if places} == {}
