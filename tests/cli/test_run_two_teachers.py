"""``run`` with a second teacher, whose predictions are averaged with those of the first."""

import json
import re
from pathlib import Path

import pytest
import yaml
from runs import CONFIGS, DATA, SHORT, STAGES, error_line, files_of, interrupted_at

from kdpl.__main__ import main
from kdpl.runtime.predictions import read_results


@pytest.fixture(scope="module")
def teacher2(tmp_path_factory):
    """Options of a second teacher, of the student's CLIP."""
    file = tmp_path_factory.mktemp("configs") / "small.yaml"
    file.write_text("model: {init_args: {clip: {model: tiny-student}, vision_prompts: {depth: 2}}}")
    return [f"--teacher2={CONFIGS}/teacher/quickstart.yaml", f"--teacher2={file}"]


def run_into(out, teacher2, *more):
    return main(["run", *DATA, *STAGES, *SHORT, *teacher2, f"--out={out}", *more])


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, teacher2):
    """The folder of a run that was interrupted after its second stage 1 and finished by the same command."""
    out = tmp_path_factory.mktemp("run") / "out"
    with interrupted_at(3):
        assert run_into(out, teacher2) == 130
    tuned = files_of(out / "teacher2")["prompts.safetensors"]
    assert run_into(out, teacher2) == 0
    assert files_of(out / "teacher2")["prompts.safetensors"] == tuned, (
        "with the time of the first start"
    )
    return out


def test_both_teachers_are_tuned_tested_and_shown(interrupted, teacher2, capsys):
    results = json.loads((interrupted / "results.json").read_text())
    assert results["second teacher"] == read_results(interrupted / "teacher2")
    assert len({row["test/acc"] for row in results.values()}) >= 4
    assert run_into(interrupted, teacher2) == 0
    text = capsys.readouterr().out
    assert "is finished: nothing to do" in "".join(text.splitlines())
    assert re.search(rf"second teacher\W+{100 * results['second teacher']['test/acc']:.1f}\b", text)
    pytest.importorskip("kdpl.report")
    report = (interrupted / "report.html").read_text()
    assert "second teacher" in report
    assert "settings of the second teacher other than the defaults" in " ".join(report.split())


def test_the_student_learns_from_both(interrupted):
    settings = yaml.safe_load((interrupted / "student/config.yaml").read_text())["model"][
        "init_args"
    ]
    teachers = settings["teacher"]
    assert teachers == [str(interrupted / "teacher"), str(interrupted / "teacher2")]
    configs = [yaml.safe_load(Path(each, "config.yaml").read_text()) for each in teachers]
    clips = [config["model"]["init_args"]["clip"]["model"] for config in configs]
    assert clips == ["tiny-teacher", "tiny-student"]


def test_another_second_teacher_is_refused(interrupted, teacher2, capsys):
    assert run_into(interrupted, teacher2[:1]) == 1
    error_line(
        capsys,
        "teacher2 was made from something else",
        "model.init_args.clip.model is tiny-student there",
    )
