"""What a plain installation does without, and that whoever needs more is told what to install."""

import re
import sys
from importlib.metadata import PackageNotFoundError, requires

import pytest
from packaging.requirements import Requirement
from runs import configs, fit_teacher, image_folder

from kdpl.__main__ import main

EXTRAS = {
    "gradio": "demo",
    "matplotlib": "quickstart",
    "mkdocs-material": "docs",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "pyarrow": "parquet",
    "scikit-learn": "quickstart",
    "shtab": "completion",
    "tensorboard": "tensorboard",
}


def brought_by(name, extras):
    """What a distribution requires for some extras, with their own extras, as far as it is installed here."""
    try:
        listed = [Requirement(each) for each in requires(name) or ()]
    except PackageNotFoundError:
        return
    for each in listed:
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            yield each.name.lower().replace("_", "-"), tuple(sorted(each.extras))


def test_a_plain_installation_brings_nothing_that_only_some_need():
    seen, waiting = set(), [("kdpl", ())]
    while waiting:
        each = waiting.pop()
        if each not in seen:
            seen.add(each)
            waiting += brought_by(*each)
    names = {name for name, _ in seen}
    assert {"torch", "lightning", "open-clip-torch", "wandb"} <= names
    assert names & EXTRAS.keys() == set()


def test_each_extra_brings_what_it_is_for():
    for package, extra in EXTRAS.items():
        assert package in {name for name, _ in brought_by("kdpl", (extra,))}


@pytest.fixture
def fails(capsys):
    """Calls a command that must fail; its one sentence."""

    def call(*args):
        capsys.readouterr()
        assert main([str(arg) for arg in args]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        sentence = err.splitlines()[-1]
        assert re.fullmatch("error: .*", sentence)
        return sentence

    return call


def without(monkeypatch, *modules):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def test_commands_name_the_extra_that_they_lack(fails, classifier, tmp_path, monkeypatch):
    image_folder(tmp_path / "pets")
    without(monkeypatch, "pyarrow", "pyarrow.parquet", "onnxruntime", "gradio", "shtab")
    sentence = fails("predict", classifier, tmp_path / "pets", f"--out={tmp_path / 'answers.parquet'}")
    assert "pip install 'kdpl[parquet]'" in sentence
    sentence = fails("export", classifier, "--format=onnx", f"--out={tmp_path / 'c.onnx'}")
    assert "pip install 'kdpl[export]'" in sentence
    assert "pip install 'kdpl[demo]'" in fails("demo", classifier, "--no-browser")
    assert "pip install 'kdpl[completion]'" in fails("completion", "bash")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets"]


def test_the_digits_and_parquet_tables_name_the_extra_that_they_lack(tmp_path, monkeypatch, capsys):
    without(monkeypatch, "sklearn", "sklearn.datasets", "pyarrow", "pyarrow.parquet")
    monkeypatch.setattr("kdpl.data.readers.digits._arrays", sys.modules["kdpl.data.readers.digits"]._arrays.__wrapped__)
    assert fit_teacher(tmp_path / "digits") == 1
    assert "pip install 'kdpl[quickstart]'" in capsys.readouterr().err
    table = tmp_path / "images.parquet"
    table.touch()
    options = ["--data.init_args.dataset=table", f"--data.init_args.root={table}"]
    assert fit_teacher(tmp_path / "table", *options) == 1
    assert "pip install 'kdpl[parquet]'" in capsys.readouterr().err


def test_a_tensorboard_logger_names_the_extra_that_it_lacks(tmp_path, monkeypatch, capsys):
    for name in ("TENSORBOARD", "TENSORBOARDX"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard._{name}_AVAILABLE", False)
    assert fit_teacher(tmp_path / "run", *configs("logger/tensorboard.yaml")) == 1
    sentence = capsys.readouterr().err
    assert "class_path 'lightning.pytorch.loggers.TensorBoardLogger'" in sentence
    assert "Neither `tensorboard` nor `tensorboardX` is available. Try `pip install`" in sentence
