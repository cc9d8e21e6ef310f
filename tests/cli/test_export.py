import shutil

import pytest
from runs import image_folder, refused

from kdpl.__main__ import main
from kdpl.class_vectors import NameEncoder
from kdpl.classifier.export import Difference
from kdpl.classifier.formats.registry import FORMATS


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), images=8)


def export(classifier, kind, out, *more):
    return main(["export", str(classifier), f"--format={kind}", f"--out={out}", *more])


@pytest.mark.parametrize(
    ("kind", "options", "difference", "words"),
    [
        ("onnx", ["--input=float"], {}, None),
        ("onnx", [], {"largest": float("nan")}, ["off by at most nan"]),
        ("onnx-int8", [], {"same": 58}, ["58 of 60 images (96.7%)", "98.0%", "--agreement"]),
        ("onnx-int8", ["--agreement=0.96"], {"same": 58}, None),
    ],
)
def test_a_file_that_differs_too_much_is_not_kept(
    kind, options, difference, words, classifier, images, tmp_path, capsys, monkeypatch
):
    # a difference that is made up needs no file with content
    blank = {"write": lambda *args: args[2].touch(), "load": lambda _: None, "extras": {}}
    fake = {kind: FORMATS[kind]._replace(**blank)}
    monkeypatch.setattr("kdpl.classifier.formats.registry.FORMATS", fake)
    compared = Difference(**{"images": 60, "same": 60, "largest": 0.0, **difference})
    monkeypatch.setattr("kdpl.classifier.export.compare", lambda *_: compared)
    out = tmp_path / "c.onnx"
    calibration = [] if kind == "onnx" else [f"--calibration={images}"]
    code = export(classifier, kind, out, *calibration, *options)
    if words is None:
        assert code == 0
        assert ("on noise: remove it and add --check IMAGES" in capsys.readouterr().out) == (
            kind == "onnx"
        )
    else:
        refused(capsys, code, *words, "was not kept")
    assert out.exists() == (words is None)


def test_added_classes_are_written_and_damaged_images_left_out(
    classifier, teacher_run, images, tmp_path, monkeypatch, capsys
):
    written, further = [], tmp_path / "further.safetensors"

    def write(exported, _, path):
        written.append(exported)
        path.touch()

    fake = {"onnx": FORMATS["onnx"]._replace(write=write, load=lambda _: None, extras={})}
    monkeypatch.setattr("kdpl.classifier.formats.registry.FORMATS", fake)
    same = Difference(images=60, same=60, largest=0.0)
    monkeypatch.setattr("kdpl.classifier.export.compare", lambda *_: same)
    NameEncoder.load(teacher_run).encode(["cross", "ring"]).save(further)
    out, mixed = tmp_path / "new" / "c.onnx", tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(images / "train/cat/0.png", mixed)
    (mixed / "broken.png").write_bytes(b"no image")
    assert export(classifier, "onnx", out, f"--add-classes={further}", f"--check={mixed}") == 0
    assert f"left out 1 of 2 images of {mixed}: " in capsys.readouterr().err
    assert written[0].class_names[-3:] == ("nine", "cross", "ring")
    assert {path.name for path in out.parent.iterdir()} == {"c.onnx", "c.golden.npz"}


@pytest.mark.parametrize(
    ("kind", "out", "options", "words"),
    [
        ("onnx-int8", "c.onnx", [], ["needs images to calibrate on", "--calibration"]),
        ("onnx", "c.pt2", [], ["does not end with .onnx"]),
        ("openvino", "c.xml", [], ["ends with .xml", "--format openvino writes a folder"]),
        ("openvino", "bad", [], ["bad exists already"]),
        ("openvino", "c", ["--preprocess=inside"], ["inside needs ONNX", "--format onnx"]),
        ("onnx", "c.onnx", ["--preprocess=inside", "--input=float"], ["--input uint8"]),
        ("onnx", "c.onnx", ["--check=bad"], ["broken.png cannot be read"]),
    ],
)
def test_wrong_settings_are_named(
    kind, out, options, words, classifier, tmp_path, capsys, monkeypatch
):
    if options:
        pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.png").write_bytes(b"no image")
    refused(capsys, export(classifier, kind, out, *options), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_a_missing_package_is_named(classifier, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "kdpl.classifier.formats.registry.find_spec", lambda name: name != "openvino" or None
    )
    code = export(classifier, "openvino", tmp_path / "c")
    refused(capsys, code, "needs openvino", "pip install 'kdpl[openvino]'")
