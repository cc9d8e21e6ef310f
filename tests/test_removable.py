"""Folders that can be removed: in a copy without one and its lines in pyproject.toml, all else works."""

import os
import re
from importlib import import_module

import pytest
from core import REMOVABLE, without
from forked import ForkedProcess
from runs import SHORT, STAGES, configs, image_folder, noise

PLUGINS = {name: import_module(f"kdpl.{name}.plugin").PLUGIN for name in REMOVABLE}


def needing(folder):
    """The folders that cannot be there without one."""
    direct = {other for other, needed in REMOVABLE.items() if folder in needed}
    return direct | {further for other in direct for further in needing(other)}


USE = """
import pkgutil, sys
from pathlib import Path

import kdpl
from kdpl.__main__ import main

run, photo, *options = sys.argv[1:]
for module in pkgutil.walk_packages(kdpl.__path__, "kdpl."):
    # sections of the report go with the report
    shown = ".report" in module.name and not (Path(kdpl.__path__[0]) / "report").exists()
    if not module.name.endswith("__main__") and not shown:
        __import__(module.name)
if cost := sys.modules.get("kdpl.report.cost"):
    cost._SECONDS = 0  # nobody reads how fast the encoders are
classifier = f"{run}/student/classifier"
calls = [
    ["run", *options, f"--out={run}"],
    ["export", classifier, "--format=onnx", f"--out={run}.onnx"],
    ["--help"],
    ["predict", classifier, photo],
]
print(kdpl.__file__, *map(main, calls))
"""


# without all of them the tests of the core run: make core
@pytest.mark.slow
@pytest.mark.parametrize(
    "folders", [("benchmark", "multilabel", "serve"), ("confidence",), ("report",)], ids="-".join
)
def test_a_project_without_folders_runs_both_stages_exports_and_predicts(folders, tmp_path):
    pytest.importorskip("onnxruntime")
    copy = tmp_path / "copy"
    gone = {*folders}.union(*map(needing, folders))
    without(gone, copy)
    commands = {name: {*plugin.commands} for name, plugin in PLUGINS.items()}
    absent = {command for name in gone for command in commands[name]}
    present = {command for name in REMOVABLE if name not in gone for command in commands[name]}
    noise(64, 64).save(tmp_path / "photo.png")
    given = [tmp_path / "run", tmp_path / "photo.png"]
    data = configs("data/folder.yaml", "trainer/cpu.yaml")
    data += [f"--data.init_args.root={image_folder(tmp_path / 'photos')}"]
    few = ["--data.init_args.batch_size=4", "--trainer.limit_train_batches=1.0"]
    options = [*given, *data, *STAGES, *SHORT, *few]
    process = ForkedProcess(["-c", USE, *options], {**os.environ, "PYTHONPATH": str(copy)}, copy)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert said.endswith(f"{copy}/kdpl/__init__.py 0 0 0 0\n")
    listed = set(re.findall(r"^  ([a-z-]+) ", said.partition("usage:")[2], re.MULTILINE))
    assert {"run", "predict", "init", *present} <= listed
    assert not listed & absent
    header, row, _ = said.partition("path,class,")[2].splitlines()
    assert header == "probability,error"
    assert row.startswith(f"{tmp_path}/photo.png,")
