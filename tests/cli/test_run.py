import json
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from differences import differences
from runs import DATA, SHORT, STAGES, configs, error_line, files_of, image_folder
from slurm_job import pretend

from kdpl import StudentDistillation
from kdpl.__main__ import main
from kdpl.callbacks.preemption import Preemption
from kdpl.cli.stage_cli import KdplCLI
from kdpl.runtime.predictions import read_results

RUN = ["run", *DATA, *STAGES, *SHORT]
STEPS = 6
STAGE_NAMES = ("teacher", "student")


@pytest.fixture
def run_into(finished):
    """Run with the settings of the finished run."""
    averaging = f"--teacher={finished.parent}/averaging.yaml"
    return lambda out, *more: main([*RUN, averaging, f"--out={out}", *more])


def test_the_single_commands_give_the_same_bit_for_bit(finished, teacher_run, student_run):
    for stage in (teacher_run, student_run):
        # the configs name the folder
        assert differences(finished / stage.name, stage) == ["config.yaml differs"]


def test_a_finished_run_holds_results_and_a_report_and_nothing_unfinished(finished):
    results = json.loads((finished / "results.json").read_text())
    folders = ["zero_shot/teacher", "teacher", "zero_shot/student", "student"]
    # the report brings linear probes
    folders += [f"probe/{role}" for role in ("teacher", "student") if (finished / "probe").is_dir()]
    assert list(results.values()) == [read_results(finished / folder) for folder in folders]
    accuracies = [row["test/acc"] for row in results.values()]
    assert len({*accuracies}) >= 3
    assert {row["images"] for row in results.values()} == {899}
    # what an evaluation of the shipped weights gives, whatever was tuned
    assert accuracies[:4:2] == pytest.approx([0.695, 0.667], abs=0.01)
    files = set(files_of(finished))
    if find_spec("kdpl.report") is not None:
        assert "report.html" in files
    assert {Path(name).name for name in files if "/." in f"/{name}"} <= {".lock"}
    config = yaml.safe_load((finished / "student" / "config.yaml").read_text())
    assert config["model"]["init_args"]["teacher"] == str(finished / "teacher")


def test_a_second_start_touches_nothing_and_refuses_other_settings(finished, run_into, capsys):
    before = files_of(finished)
    assert run_into(finished) == 0
    out, err = capsys.readouterr()
    assert "is finished: nothing to do" in "".join(out.splitlines())
    assert "student, distilled" in out
    assert err == ""
    assert run_into(finished, "--seed=4") == 1
    differs = "seed_everything is 1 there and 4 here"
    line = error_line(capsys, "was made from something else", differs)
    assert line.endswith(f"or remove {finished}"), "both stages"
    assert files_of(finished) == before


def test_a_wrong_start_is_one_line_before_stage_1(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "broken": "model: [",
        "filter": "model: {init_args: {pool_filter: 2}}",
        "clip": "model: {init_args: {clip: {model: tiny-studnet}}}",
    }.items():
        Path(f"{name}.yaml").write_text(text)
    for args, words in (
        ([], ["--teacher, --student, --out", "run --help"]),
        ([*RUN[1:], "--out=out", "--teacher=gone.yaml"], ["gone.yaml", "does not exist"]),
        ([*RUN[1:], "--out=out", "--student=broken.yaml"], ["broken.yaml", "not YAML"]),
        ([*RUN[1:], "--out=out", "--student=filter.yaml"], ["pool_filter"]),
        ([*RUN[1:], "--out=out", "--val-share=30%"], ["--val-share"]),
        ([*RUN[1:], "--out=out", "--student=clip.yaml"], ["tiny-studnet"]),
        ([*RUN[1:], "--out=."], ["error: --out . contains something other than a run (broken."]),
    ):
        assert main(["run", *args]) == 1
        error_line(capsys, *words)
    assert not [*tmp_path.rglob("teacher"), *tmp_path.rglob("config.yaml")]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "pets", "--teacher=promptsrc"], ["'promptsrc'", "(promptsrc_vit_l14"]),
        (["run", "pets", "--config=trainer/typo"], ["'trainer/typo'", "trainer/cpu"]),
    ],
)
def test_a_mistyped_name_is_refused_before_the_images_are_looked_at(
    args, words, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "kdpl.cli.prepare", None)  # imports Lightning
    assert main(args) == 1
    error_line(capsys, *words)


def planned(monkeypatch, *options):
    """The stages that ``run`` hands on, step by step; nothing is fitted."""
    stages = []

    def run_stage(stage):
        stages.append(stage)
        if len(stages) == STEPS:
            raise KeyboardInterrupt

    monkeypatch.setattr("kdpl.cli.fit.run_stage", run_stage)
    assert main([*RUN, *options]) == 130
    return stages


def test_the_tests_of_a_stage_have_its_settings_without_prompts_for_the_original_clip(
    tmp_path, monkeypatch
):
    stages = planned(monkeypatch, "--data.shots=4", "--seed=3", f"--out={tmp_path}")
    for stage in stages:
        settings = stage.config
        assert (settings.data.init_args.shots, settings.seed_everything) == (4, 3)
    assert [stage.command for stage in stages] == ["fit"] * 2 + ["test"] * 4
    teacher, student = (stage.config for stage in stages[:2])
    assert [stage.config for stage in stages[2:4]] == [teacher, student]
    for stage, fitted, name in zip(stages[4:], (teacher, student), STAGE_NAMES, strict=True):
        settings = stage.config.model.init_args
        assert settings.clip == fitted.model.init_args.clip
        assert settings.vision_prompts.depth == settings.text_prompts.depth == 0
        assert stage.config.out == str(tmp_path / "zero_shot" / name)


@pytest.mark.parametrize("teacher", [[], ["--teacher=zero_shot"]])
def test_images_of_ones_own_have_stored_features(teacher, tmp_path, monkeypatch):
    own = [*configs("data/folder.yaml"), f"--data.root={image_folder(tmp_path / 'data')}"]
    plans = []
    monkeypatch.setattr(
        "kdpl.cli.run._carry_out", lambda _, stages, *__, **___: plans.append(stages)
    )
    published = {"teacher": ("torch", 0), "student": ("torch", "auto")}
    for data, taken in ((own, dict.fromkeys(STAGE_NAMES, ("auto", "auto"))), ([], published)):
        assert main([*RUN, *data, *teacher, f"--out={tmp_path / 'out'}"]) == 0
        for name, stage in plans.pop().items():
            model = stage.config.model.init_args
            if name == "student" or not teacher:
                assert (model.engine, model.stored_views) == taken[name]
            assert not stage.config.data.init_args.train_on_val


def test_the_original_clip_has_words_in_place_of_a_context_that_starts_from_noise(
    tmp_path, monkeypatch
):
    stages = planned(monkeypatch, "--teacher=atprompt", f"--out={tmp_path}")
    contexts = [stage.config.model.init_args.get("context", "") for stage in stages]
    assert contexts == [None, "", None, "", "a photo of a", "a photo of a"]


def test_models_that_are_no_tuned_clips_are_tested_once_by_short_settings_too(
    tmp_path, monkeypatch
):
    untuned = "model: {vision_prompts: {depth: 0}, text_prompts: {depth: 0}}"
    (tmp_path / "untuned.yaml").write_text(untuned)
    (tmp_path / "timm.yaml").write_text("model: {clip: {model: timm:test_resnet}}")
    plans = []
    monkeypatch.setattr(KdplCLI, "check_all", lambda _: None)
    monkeypatch.setattr("kdpl.cli.run._do", lambda *args: plans.append(args[1]))
    monkeypatch.setattr("kdpl.cli.run._has_test_images", lambda _: 1 / 0)
    configs = [f"--teacher={tmp_path}/untuned.yaml", f"--student={tmp_path}/timm.yaml"]
    with pytest.raises(ZeroDivisionError):
        main([*RUN, *configs, f"--out={tmp_path / 'out'}"])
    assert [step.title for step in plans[0]] == [
        "stage 1: the teacher is the original CLIP, freeze class vectors",
        "stage 2: distil the student, write the classifier",
        "test the teacher",
        "test the student",
    ]


def test_one_class_is_refused_before_anything_is_trained(tmp_path, capsys):
    folder, out = image_folder(tmp_path / "data", ["cat"], splits=["train"]), tmp_path / "out"
    data = [*configs("data/folder.yaml", "trainer/cpu.yaml"), f"--data.init_args.root={folder}"]
    assert main(["run", *data, *STAGES, *SHORT, f"--out={out}"]) == 1
    error_line(capsys, "has one class, 'cat', expected several")
    assert not (out / "teacher" / "checkpoints").exists()


def test_what_takes_long_is_announced_and_an_interruption_early_in_stage_2_says_what_is_kept(
    tmp_path, run_into, capsys, monkeypatch
):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(StudentDistillation, "on_train_batch_start", interrupt)
    assert run_into(tmp_path / "out") == 130
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if re.match("loading|reading|encoding", line)] == [
        "loading tiny-teacher, weights glyphs",
        "reading dataset digits",
        "encoding 10 classes in 60 templates",
        "loading tiny-student, weights glyphs",
        "reading dataset digits",
        f"loading the teacher of {tmp_path}/out/teacher",
    ]
    kept = f"(after 0 steps; there is no checkpoint yet; step 1 of {STEPS} is finished and kept)"
    assert lines[-1] == f"interrupted: rerun the same command to resume {kept}"


def test_a_run_interrupted_in_stage_2_is_resumed_there_and_may_have_other_devices_and_workers(
    finished, run_into, tmp_path, capsys
):
    out = tmp_path / "out"
    # files are complete or missing, so this is what an interruption in stage 2 leaves
    shutil.copytree(finished, out)
    shutil.rmtree(out / "student" / "classifier")
    for name in ("student/test.json", "student/test_predictions.csv", "results.json"):
        (out / name).unlink()
    for file in out.glob("*/config.yaml"):
        file.write_text(file.read_text().replace(str(finished), str(out)))
    teacher = files_of(out / "teacher")
    teacher.pop(".lock", None)
    assert run_into(out, "--data.init_args.num_workers=1") == 0
    text, err = capsys.readouterr()
    assert [n for n in "123456" if f"{n}/6 " in text] == ["2", "4", "6"]
    assert f"resuming from {out}/student/checkpoints/last.ckpt" in err
    assert teacher.items() <= files_of(out / "teacher").items()
    # a kill while the results were written
    leftover = out / ".results.json.x.unfinished"
    leftover.mkdir()
    (out / "results.json").rename(leftover / "results.json")
    assert run_into(out, "--data.init_args.num_workers=1") == 0
    assert not leftover.exists()
    for name in ("student/test.json", "student/classifier/model.safetensors", "results.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()


def test_a_step_after_the_notice_of_slurm_requeues_the_job_before_it_begins(tmp_path, monkeypatch):
    asked = pretend(monkeypatch, tmp_path)
    monkeypatch.setattr(Preemption, "_noticed", lambda _: True)
    with pytest.raises(SystemExit, match="75"):
        main([*RUN, f"--out={tmp_path / 'out'}"])
    assert asked.read_text() == "requeue 17\n"
    assert not list(tmp_path.rglob("*.ckpt"))
