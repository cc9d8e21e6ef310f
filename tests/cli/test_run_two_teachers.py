"""``run`` with a second teacher, whose predictions are averaged with those of the first."""

import json
import re

import pytest
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


def test_the_student_learns_from_both(tmp_path, teacher2, monkeypatch):
    stages = []

    def run_stage(stage):
        stages.append(stage.config.model.init_args)
        if len(stages) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("kdpl.cli.fit.run_stage", run_stage)
    assert run_into(tmp_path, teacher2) == 130
    first, second, student = stages
    assert (first.clip.model, second.clip.model) == ("tiny-teacher", "tiny-student")
    assert student.teacher == [str(tmp_path / "teacher"), str(tmp_path / "teacher2")]


@pytest.mark.slow
def test_an_interrupted_run_tunes_tests_and_shows_both_teachers_and_keeps_them(
    tmp_path, teacher2, capsys
):
    out = tmp_path / "out"
    with interrupted_at(3):
        assert run_into(out, teacher2) == 130
    tuned = files_of(out / "teacher2")["prompts.safetensors"]
    assert run_into(out, teacher2) == 0
    assert files_of(out / "teacher2")["prompts.safetensors"] == tuned, "with its time"
    results = json.loads((out / "results.json").read_text())
    assert results["second teacher"] == read_results(out / "teacher2")
    assert len({row["test/acc"] for row in results.values()}) >= 4
    text = capsys.readouterr().out
    assert re.search(rf"second teacher\W+{100 * results['second teacher']['test/acc']:.1f}\b", text)
    if (out / "report.html").is_file():
        assert "second teacher" in (out / "report.html").read_text()
    # another second teacher
    assert run_into(out, teacher2[:1]) == 1
    words = ["teacher2 was made from something else", "model.init_args.clip.model is tiny-student"]
    error_line(capsys, *words)
