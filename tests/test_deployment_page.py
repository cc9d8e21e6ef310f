import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpl import Classifier
from kdpl.__main__ import main

PAGE = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def exported(student_run, tmp_path_factory):
    """A folder with classifier.onnx and pictures of several shapes."""
    folder = tmp_path_factory.mktemp("shipped")
    assert main(["export", str(student_run / "classifier"), "--format=onnx", f"--out={folder}/classifier.onnx"]) == 0
    draw = np.random.RandomState(0)
    for i, (width, height) in enumerate([(32, 32), (47, 90), (101, 64)]):
        Image.fromarray(draw.randint(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def test_the_script_without_torch_gives_the_classifiers_answers(exported, student_run):
    (script,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "onnxruntime" in block)
    forbidding = "import sys; sys.modules.update(torch=None, torchvision=None, kdpl=None)\n"
    pictures = sorted(exported.glob("*.png"))
    for path, (guess,) in zip(pictures, Classifier.load(student_run / "classifier").predict(pictures), strict=True):
        command = [sys.executable, "-c", forbidding + script, path.name]
        done = subprocess.run(command, cwd=exported, capture_output=True, text=True, check=True)
        name, probability = done.stdout.rsplit(maxsplit=1)
        assert name == guess.class_name
        assert float(probability) == pytest.approx(guess.probability, abs=1e-5)


@pytest.mark.parametrize("command", ["predict", "export"])
def test_every_option_that_the_page_names_is_one(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    known = capsys.readouterr().out
    lines = [line for line in PAGE.splitlines() if line.startswith(f"python -m kdpl {command} ")]
    named = {option for line in lines for option in re.findall(r"--[a-z_-]+", line)}
    assert len(named) > 2
    assert {option for option in named if f"{option} " not in known} == set()
