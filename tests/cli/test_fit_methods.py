"""Each further method of prompting, from the first epoch to an exported file."""

import pytest
from differences import differences
from runs import CONFIGS, DATA, SHORT, TEACHER, at_step, fit_student

from kdpl.__main__ import main

METHODS = {
    "ATPrompt": [
        f"--config={CONFIGS}/teacher/atprompt.yaml",
        "--model.init_args.text_prompts={length: 2, depth: 2}",
    ],
    "MMRL": [
        f"--config={CONFIGS}/teacher/mmrl.yaml",
        "--model.init_args.clip={model: tiny-teacher, pretrained: glyphs}",
        "--model.init_args.vision_prompts={length: 2, depth: 2}",
        "--model.init_args.text_prompts={length: 2, depth: 2}",
        "--model.init_args.method.init_args={first_layer: 1, width: 16}",
    ],
}


@pytest.mark.usefixtures("without_companions")
@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
def test_a_method_is_resumed_frozen_distilled_and_exported(settings, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    def fit(name):
        return main(["fit", *DATA, *TEACHER, *settings, *SHORT, f"--out={tmp_path / name}"])

    assert fit("whole") == 0
    with at_step(4, interrupt):
        assert fit("resumed") == 130
    assert fit("resumed") == 0
    assert differences(tmp_path / "whole", tmp_path / "resumed") == ["config.yaml differs"]

    assert fit_student(tmp_path / "student", tmp_path / "resumed") == 0
    pytest.importorskip("onnxscript")
    classifier, file = tmp_path / "student" / "classifier", tmp_path / "student.onnx"
    # compares the file with the classifier before it is kept
    assert main(["export", str(classifier), "--format=onnx", f"--out={file}"]) == 0
    assert file.is_file()
