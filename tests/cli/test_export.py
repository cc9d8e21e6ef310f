import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.cli.export import _images
from kdpl.deploy.export import Difference


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    for i, image in enumerate(load_digits().images[:60]):
        Image.fromarray((image * 15).astype(np.uint8)).resize((30, 34)).save(folder / f"{i:02}.png")
    return folder


def export(classifier, kind, out, *more):
    return main(["export", str(classifier), f"--format={kind}", f"--out={out}", *more])


@pytest.mark.parametrize(
    ("kind", "name", "options", "words"),
    [
        ("torch", "c.pt2", ["--check={}"], "the same class for 60 of 60 images (100.0%), logits off by at most"),
        ("torch", "c.pt2", ["--input=float"], "32 of 32 images (100.0%), logits off by at most"),
        ("onnx", "c.onnx", ["--check={}"], "the same class for 60 of 60 images (100.0%), logits off by at most"),
        pytest.param(
            *("onnx-int8", "q.onnx", ["--calibration={}", "--agreement=0.9"], "of 60 images ("), marks=pytest.mark.slow
        ),
    ],
)
def test_a_file_is_written_and_compared(kind, name, options, words, classifier, digits, tmp_path, capsys):
    capsys.readouterr()
    out = tmp_path / "new" / name
    assert export(classifier, kind, out, *[option.format(digits) for option in options]) == 0
    printed, err = capsys.readouterr()
    assert printed.startswith(f"{out}: ")
    assert words in printed
    assert ("on noise" in printed) == (options == ["--input=float"])
    assert err == ""
    assert [path.name for path in out.parent.iterdir()] == [name]


def fails(capsys, code, *words):
    assert code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_a_file_that_differs_too_much_is_not_kept(classifier, digits, tmp_path, capsys, monkeypatch):
    out = tmp_path / "c.pt2"
    out.write_text("older")
    code = export(classifier, "torch", out, f"--check={digits}", "--tolerance=-1")
    fails(capsys, code, "60 of 60 images", "was not kept", "--tolerance")
    monkeypatch.setattr("kdpl.deploy.export.compare", lambda *_: Difference(images=1, same=1, logits=float("nan")))
    fails(capsys, export(classifier, "torch", out), "logits off by at most nan")
    monkeypatch.setattr("kdpl.deploy.export.compare", lambda *_: Difference(images=100, same=97, logits=0.1))
    monkeypatch.setattr("kdpl.deploy.export.write_int8_onnx", lambda *args: args[2].touch())
    quantized = tmp_path / "q.onnx"
    code = export(classifier, "onnx-int8", quantized, f"--calibration={digits}")
    fails(capsys, code, "97 of 100 images (97.0%)", "expected 98.0% or more", "was not kept", "--agreement")
    assert export(classifier, "onnx-int8", quantized, f"--calibration={digits}", "--agreement=0.97") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pt2", "q.onnx"]
    assert out.read_text() == "older"


def test_settings_that_do_not_fit_are_named(classifier, digits, tmp_path, capsys):
    out = tmp_path / "c.onnx"
    fails(capsys, export(classifier, "onnx-int8", out), "needs images to calibrate on", "--calibration")
    fails(capsys, export(classifier, "torch", out), "does not end with .pt2")
    fails(capsys, export(classifier, "onnx", tmp_path), "is a folder")
    fails(capsys, export(classifier, "jpeg", out), "format")
    fails(capsys, export(tmp_path / "gone", "onnx", out), "gone does not exist")
    fails(capsys, export(classifier, "onnx", out, "--check=nowhere"), "nowhere", "does not exist")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.png").write_bytes(b"no image")
    fails(capsys, export(classifier, "onnx", out, f"--check={tmp_path / 'bad'}"), "broken.png cannot be read")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(package, classifier, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    fails(capsys, export(classifier, "onnx", tmp_path / "c.onnx"), f"needs {package}", "pip install 'kdpl[export]'")


def test_images_are_spread_over_the_folder(classifier, digits):
    loaded = Classifier.load(classifier)
    every = _images(loaded, str(digits), 1000)
    assert len(every) == 60
    assert _images(loaded, str(digits), 6).equal(every[::10])
