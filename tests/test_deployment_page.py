import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import noise

from kdpl import Classifier
from kdpl.__main__ import main

PAGE = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text(encoding="utf-8")


def test_the_script_without_torch_makes_the_classifiers_predictions(classifier, tmp_path):
    assert main(["export", str(classifier), "--format=onnx", f"--out={tmp_path}/classifier.onnx"]) == 0
    pictures = [tmp_path / f"{i}.png" for i in range(3)]
    for path, size in zip(pictures, [(32, 32), (47, 90), (101, 64)], strict=True):
        noise(*size).save(path)
    (script,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "onnxruntime" in block)
    forbidding = "import sys; sys.modules.update(torch=None, torchvision=None, kdpl=None)\n"
    for path, (expected,) in zip(pictures, Classifier.load(classifier).predict(pictures), strict=True):
        command = [sys.executable, "-c", forbidding + script, path.name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        name, probability = done.stdout.rsplit(maxsplit=1)
        assert (name, float(probability)) == (expected.class_name, pytest.approx(expected.probability, abs=1e-5))
