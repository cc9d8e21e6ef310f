"""Run the tests with the oldest versions that pyproject.toml allows: ``make floors``.

Installs kdpl with all extras into the environment of this Python, each package at its floor.
"""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def floors(requirements):
    """The oldest version of each package by its name; ``kdpl[extra]`` has none."""
    found = (re.match(r"([\w-]+)(?:\[.*\])?>=([\w.]+)", each) for each in requirements)
    return {match[1].lower(): match[2] for match in found if match}


def install(project, tools, versions):
    """Install kdpl and then tools with these versions; pip chooses those of all other packages."""
    constraints = Path(sys.prefix) / "floors.txt"
    constraints.write_text(
        "".join(f"{name}=={floor}\n" for name, floor in versions.items()), encoding="utf-8"
    )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True)
    pip += ["--constraint", constraints]
    subprocess.run([*pip, "--editable", project], cwd=ROOT, check=True)
    # separately, and with boto3 at the version of the botocore that s3fs needs, since pip would try
    # hundreds of combinations
    with constraints.open("a", encoding="utf-8") as file:
        file.write(f"boto3=={version('botocore')}\n")
    subprocess.run([*pip, *tools], cwd=ROOT, check=True)


def main(paths):
    """Install, test, and return 0 if all tests passed; ``paths`` are those of tests."""
    versions = floors(
        [*PROJECT["dependencies"], *(each for group in EXTRAS.values() for each in group)]
    )
    tools = [each for each in EXTRAS["dev"] if not each.startswith("kdpl[")]
    others = ",".join(extra for extra in EXTRAS if extra != "dev")
    install(f".[{others}]", tools, versions)
    command = [sys.executable, "-m", "pytest", "-m", "not slow", "-n", "2", "--dist", "loadfile"]
    return subprocess.run([*command, *paths], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
