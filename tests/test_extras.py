"""What a plain installation does without, and that whoever needs more is told what to install."""

import sys
from importlib.metadata import PackageNotFoundError, requires

import pytest
from packaging.requirements import Requirement
from runs import DATA, SHORT, TEACHER, configs, error_line, fit_teacher, image_folder

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


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["predict", "{classifier}", "{folder}/pets", "--out={folder}/answers.parquet"], "parquet"),
        (["export", "{classifier}", "--format=onnx", "--out={folder}/c.onnx"], "export"),
        (["demo", "{classifier}", "--no-browser"], "demo"),
        (["completion", "bash"], "completion"),
        (["fit", *DATA, *TEACHER, *SHORT, "--out={folder}/digits"], "quickstart"),
    ],
)
def test_commands_name_the_extra_that_they_lack(command, extra, classifier, tmp_path, monkeypatch, capsys):
    image_folder(tmp_path / "pets")
    lacking = ("pyarrow", "pyarrow.parquet", "onnxruntime", "gradio", "shtab", "sklearn", "sklearn.datasets")
    for module in lacking:
        monkeypatch.setitem(sys.modules, module, None)
    digits = sys.modules["kdpl.data.readers.digits"]
    monkeypatch.setattr(digits, "_arrays", digits._arrays.__wrapped__)
    capsys.readouterr()
    assert main([word.format(classifier=classifier, folder=tmp_path) for word in command]) == 1
    assert f"pip install 'kdpl[{extra}]'" in error_line(capsys)
    assert not list(tmp_path.glob("[ac]*"))


def test_a_tensorboard_logger_names_the_extra_that_it_lacks(tmp_path, monkeypatch, capsys):
    for name in ("TENSORBOARD", "TENSORBOARDX"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard._{name}_AVAILABLE", False)
    assert fit_teacher(tmp_path / "run", *configs("logger/tensorboard.yaml")) == 1
    sentence = capsys.readouterr().err
    assert "class_path 'lightning.pytorch.loggers.TensorBoardLogger'" in sentence
    assert "Neither `tensorboard` nor `tensorboardX` is available. Try `pip install`" in sentence
