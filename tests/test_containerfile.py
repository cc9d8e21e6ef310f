"""The Containerfile's steps, in a folder and a virtual environment: no container engine is needed."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from runs import DATA, SHORT, TEACHER
from test_project import PYPROJECT

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Containerfile").read_text(encoding="utf-8")
LINES = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
STEPS = [tuple(line.split(maxsplit=1)) for line in LINES if line.strip()]
# of the image's system: a user account, which this machine must not get
OF_THE_SYSTEM = "useradd "


def of(instruction):
    return [rest for name, rest in STEPS if name == instruction]


def test_the_image_is_of_a_user_without_rights_and_is_sent_what_it_copies():
    default, project = dict(rest.split("=", 1) for rest in of("ARG")), PYPROJECT["project"]
    assert f"Programming Language :: Python :: {default['PYTHON']}" in project["classifiers"]
    assert {*json.loads(default["EXTRAS"]).split(",")} <= project["optional-dependencies"].keys()
    (user,) = of("USER")
    assert any(rest.startswith(OF_THE_SYSTEM) and rest.endswith(f" {user}") for rest in of("RUN"))
    sent = (ROOT / ".containerignore").read_text(encoding="utf-8").splitlines()
    copied = {source for rest in of("COPY") for source in rest.split()[:-1]}
    assert {line[1:] for line in sent if line.startswith("!")} == copied


@pytest.mark.slow
def test_every_step_runs_in_an_environment_and_the_entry_point_trains(tmp_path):
    with tempfile.TemporaryDirectory(dir=tmp_path) as scratch:
        venv, image = Path(scratch) / "venv", Path(scratch) / "image"
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        # pip finds the dependencies, but installs this package: make base installs all in a plain environment
        (site,) = venv.glob("lib/*/site-packages")
        packages = [path for path in sys.path if path.endswith("site-packages")]
        (site / "dependencies.pth").write_text("\n".join(packages))
        settings = {"PATH": f"{venv}/bin:/usr/bin:/bin", "HOME": scratch, "OMP_NUM_THREADS": "1"}
        # how this machine reaches its package index, with its cache
        settings |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        folder, ran = image, []
        for step, rest in STEPS:
            if step == "WORKDIR":
                folder = image / rest.lstrip("/")
                folder.mkdir(parents=True, exist_ok=True)
            elif step in ("ARG", "ENV"):
                given = re.findall(r'(\w+)=("[^"]*"|\S*)', rest)
                values = {name: value.strip('"') for name, value in given}
                settings |= {n: value for n, value in values.items() if n != "PIP_NO_CACHE_DIR"}
            elif step == "COPY":
                *sources, to = rest.split()
                for source in map(ROOT.joinpath, sources):
                    if source.is_dir():
                        ignore = shutil.ignore_patterns("__pycache__")
                        shutil.copytree(source, folder / to, ignore=ignore)
                    else:
                        shutil.copy(source, folder / to)
            elif step == "RUN" and not rest.startswith(OF_THE_SYSTEM):
                subprocess.run(["sh", "-ec", rest], cwd=folder, env=settings, check=True)
                ran.append(rest)
        assert len(ran) == len(of("RUN")) - 1
        (command,) = map(json.loads, of("ENTRYPOINT"))
        command[0] = str(venv / "bin" / command[0])
        # by their names, which the installed package knows
        words = (word.replace(f"{ROOT}/configs/", "") for word in [*DATA, *TEACHER])
        configs = [word.removesuffix(".yaml") for word in words]
        args = ["fit", *configs, *SHORT, "--trainer.max_epochs=1", "--out=runs/teacher"]
        done = subprocess.run(
            [*command, *args], cwd=folder, env=settings, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert list(site.glob("kdpl-*.dist-info")), "it is not installed"
        assert (folder / "runs/teacher/class_vectors.safetensors").is_file()
