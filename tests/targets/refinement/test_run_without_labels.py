"""``run`` without labels: the original CLIP is the teacher, and no labelled image is used."""

import json
from importlib.util import find_spec

import pytest
import torch
import yaml
from runs import (
    DATA,
    SHORT,
    STAGES,
    configs,
    curves_of,
    error_line,
    files_of,
    fit_teacher,
    image_folder,
)

from kdpl import Classifier, ClassVectors
from kdpl.__main__ import main
from kdpl.cli.stage_cli import KdplCLI
from kdpl.data import datamodule
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE

FEW = "--data.init_args.unlabeled_share=0.1"
RUN = ["run", *DATA, *STAGES, *SHORT, FEW]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run during which a labelled image could not be asked for."""
    out = tmp_path_factory.mktemp("run") / "out"
    views = out.parent / "views.yaml"
    target = "{class_path: kdpl.targets.refinement.target.Refined, init_args: {views: 2}}"
    views.write_text(f"model: {{init_args: {{target: {target}}}}}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datamodule, "LabeledImages", None)
        assert main([*RUN, "--shots=0", f"--student={views}", f"--out={out}"]) == 0
    return out


def settings(stage):
    return yaml.safe_load((stage / "config.yaml").read_text())


def test_the_teacher_is_that_of_the_config_and_the_student_is_trained_as_asked(finished, tmp_path):
    config = configs("teacher/zero_shot.yaml")
    assert fit_teacher(tmp_path / "teacher", *config, FEW, "--data.init_args.shots=0") == 0
    by_config, by_run = (settings(folder / "teacher") for folder in (tmp_path, finished))
    assert by_config.pop("out") != by_run.pop("out")
    assert by_config == by_run
    vectors, expected = (
        ClassVectors.load(folder / "teacher" / CLASS_VECTORS_FILE).vectors
        for folder in (finished, tmp_path)
    )
    assert torch.equal(vectors, expected)
    student = settings(finished / "student")
    assert (student["data"]["init_args"]["shots"], student["trainer"]["max_epochs"]) == (0, 2)
    target = student["model"]["init_args"]["target"]
    assert target["class_path"] == "kdpl.targets.refinement.target.Refined"
    assert target["init_args"]["views"] == 2
    assert (finished / "student/pool_targets.safetensors").is_file()
    assert "train/loss" in curves_of(finished / "student")
    assert not any(name.startswith("val/") for name in curves_of(finished / "student"))
    assert "held_out" not in Classifier.load(finished / "student/classifier").companions
    results = json.loads((finished / "results.json").read_text())
    assert [*results] == ["teacher, zero-shot", "student's CLIP, zero-shot", "student, distilled"]
    assert results["teacher, zero-shot"]["test/acc"] == pytest.approx(0.695, abs=0.01)
    assert {row["images"] for row in results.values()} == {899}
    if find_spec("kdpl.report") is not None:
        assert "tuned" not in (finished / "report.html").read_text().partition("<details>")[0]


@pytest.mark.parametrize(
    ("more", "zero_shot", "target"),
    [
        ([], False, None),
        (["--shots", "0"], True, "refined"),
        (["--teacher=none.yaml"], True, "refined"),
        (["--config=none.yaml", "--data.init_args.shots=4"], False, None),
        (["--shots=0", "--student=target.yaml"], True, None),
    ],
)
def test_labels_and_target_of_all_settings_decide(more, zero_shot, target, tmp_path, monkeypatch):
    for name, text in {
        "none": "data: {init_args: {shots: 0}}",
        "target": "model: {init_args: {target: teacher}}",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    fits = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(KdplCLI, "check_all", lambda stage: fits.append(stage.config))
    monkeypatch.setattr("kdpl.cli.run._do", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([*RUN, "--out=out", *more])
    teacher, student = fits
    assert (teacher.trainer.max_epochs == 0) == zero_shot
    assert student.model.init_args.target == (target or "teacher")


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--shots=-1"], "shots"), (["--shots=0", "--student=pool_filter"], "pool_filter need")],
)
def test_what_needs_labels_is_refused_before_the_teacher_is_tuned(more, words, tmp_path, capsys):
    assert main([*RUN, f"--out={tmp_path / 'out'}", *more]) == 1
    error_line(capsys, words)
    assert not (tmp_path / "out" / "teacher").exists()


def test_a_run_without_test_images_ends_with_a_classifier_and_a_report(tmp_path, capsys):
    root, out = image_folder(tmp_path / "pets", splits=("train",)), tmp_path / "out"
    data = [*configs("data/folder.yaml", "trainer/cpu.yaml"), f"--data.init_args.root={root}"]
    data += ["--data.init_args.reading.test_share=0", "--data.init_args.batch_size=4"]
    command = ["run", *data, *STAGES, *SHORT, "--shots=0", f"--out={out}"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "there are no test images: nothing was tested" in said
    assert (out / "report.html").is_file() == (find_spec("kdpl.report") is not None)
    assert not list(out.rglob("test.json"))
    assert Classifier.load(out / "student/classifier").class_names == ("cat", "dog")
    before = files_of(out)
    assert main(command) == 0
    assert "is finished: nothing to do" in "".join(capsys.readouterr().out.splitlines())
    assert files_of(out) == before
