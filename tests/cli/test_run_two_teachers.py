"""A run whose student learns from the tuned teacher and an original CLIP."""

import shutil

import pytest
import yaml
from runs import CONFIGS, DATA, SHORT, STAGES, at_step, curves_of
from soak.comparison import differences

from kdpl.__main__ import main

CLIP = "zero_shot:tiny-resnet,glyphs"
RUN = ["run", *DATA, *STAGES, *SHORT, f"--teacher2={CLIP}"]
RUN += [f"--student={CONFIGS}/student/confidence.yaml"]


@pytest.mark.usefixtures("without_companions")
def test_a_run_of_two_teachers_is_resumed_as_if_uninterrupted(finished, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    def start(place):
        # the teacher counts as finished
        out = tmp_path / place / "run"
        shutil.copytree(finished / "teacher", out / "teacher")
        averaging = f"--teacher={finished.parent}/averaging.yaml"
        return out, [*RUN, averaging, f"--out={out}"]

    whole, command = start("whole")
    assert main(command) == 0
    settings = yaml.safe_load((whole / "student/config.yaml").read_text())["model"]["init_args"]
    assert settings["teacher"] == [str(whole / "teacher"), CLIP]
    assert settings["mixture"]["weights"] == "confidence"

    out, command = start("resumed")
    with at_step(4, interrupt):
        assert main(command) == 130
    assert main(command) == 0
    said = differences(whole / "student", out / "student")
    means = {f"metrics.csv: {k} differs" for k in curves_of(whole / "student") if "train" in k}
    assert {each for each in said if not each.startswith("metrics")} <= {"config.yaml differs"}
    assert {each for each in said if each.startswith("metrics")} <= means
