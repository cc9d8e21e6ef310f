"""The program in examples/cpp/, built by a real compiler."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from kdpl.__main__ import main
from kdpl.classifier import Classifier, Decoding

SOURCE = Path(__file__).parents[1] / "examples" / "cpp" / "main.cpp"
NAMES = ('a "b"', "\\back", "grün", "日本", "🐈", "[1, 2]", "tab\\n", "7", "8", "9")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    built = tmp_path_factory.mktemp("cpp") / "classify"
    command = ["g++", "-std=c++17", "-O2", SOURCE, "-lonnxruntime", "-o", built]
    headers = [Path("/usr/include", name) for name in ("onnxruntime", "stb/stb_image.h")]
    if shutil.which("g++") is None or not all(header.exists() for header in headers):
        pytest.skip("needs g++, libonnxruntime-dev and libstb-dev")
    subprocess.run(command, check=True, timeout=300)
    return built


@pytest.mark.slow
def test_the_program_predicts_as_predict_does(program, classifier, tmp_path):
    pytest.importorskip("onnxscript")
    loaded = Classifier.load(classifier)
    loaded.decoding = Decoding()  # of a user's images
    loaded.vectors = replace(loaded.vectors, class_names=NAMES)
    loaded.save(tmp_path / "saved")
    for name, more in (("plain", []), ("inside", ["--preprocess=inside"])):
        options = ["--format=onnx", f"--out={tmp_path / name}.onnx", *more]
        assert main(["export", str(tmp_path / "saved"), *options]) == 0

    draw, digits, files = np.random.default_rng(1), load_digits().images, []
    for number in range(100):
        size = tuple(draw.integers(8, 300, 2).tolist())
        image = Image.fromarray((digits[number] * 15).astype("uint8")).resize(size)
        if number % 4 == 1:
            image = image.convert("RGB")
            image.putalpha(int(draw.integers(0, 256)))
        files.append(str(tmp_path / f"{number}.png"))
        image.save(files[-1])
    (tmp_path / "no.png").write_text("no image")

    run = lambda *given: subprocess.run(  # noqa: E731
        [program, *given], capture_output=True, text=True, timeout=300, check=False
    )
    done = run(tmp_path / "inside.onnx", *files, tmp_path / "no.png")
    assert done.returncode == 1
    assert "no.png cannot be read" in done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [file for file, _, _ in lines] == files
    for (_, name, probability), (top,) in zip(lines, loaded.predict(files), strict=True):
        assert (name, float(probability)) == (
            top.class_name,
            pytest.approx(top.probability, abs=0.01),
        )
    assert {name for _, name, _ in lines} <= set(NAMES)
    assert "export it with --preprocess inside" in run(tmp_path / "plain.onnx", files[0]).stderr
