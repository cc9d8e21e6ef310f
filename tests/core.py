"""Run the tests of the core in a copy of the project without the folders that can be removed: ``make core``."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from runs import install_entry_points

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REMOVABLE = PYPROJECT["tool"]["kdpl"]["removable"]


def without(folders, copy):
    """Copy the package without these folders and their lines in pyproject.toml, and the configs that ship with it."""
    for name in ("kdpl", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    for folder in folders:
        shutil.rmtree(copy / "kdpl" / folder)
        declaring = re.compile(rf'"kdpl\.{folder}\.|^{folder} = \[.*\]$')
        lines = [line for line in lines if not declaring.search(line)]
    text = "\n".join(lines)
    (copy / "pyproject.toml").write_text(text, encoding="utf-8")
    groups = tomllib.loads(text)["project"]["entry-points"]
    install_entry_points(copy, "kdpl", "0.1.0", groups)


# tests of the project's files, of what does not ship, or of the core together with the folders
_NOT_OF_THE_CORE = (
    *(*REMOVABLE, "distributed", "fuzz", "hostile", "worlds"),
    *(f"test_{name}.py" for name in ("benchmarks", "configs", "containerfile", "docs", "examples")),
    *(f"test_{name}.py" for name in ("notebook", "project", "removable", "screenshots")),
    "test_structure.py",
)


def main(options):
    """Copy, run pytest with these options and paths, and return its exit code."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        without(REMOVABLE, copy)
        left_out = shutil.ignore_patterns("__pycache__", *_NOT_OF_THE_CORE)
        for name in ("examples", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=left_out)
        command = [sys.executable, "-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider"]
        return subprocess.run(
            [*command, *options], cwd=copy, env=os.environ | {"PYTHONPATH": temporary}, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
