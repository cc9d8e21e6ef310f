import atexit
import json
import os
import shutil
import weakref
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from differences import differences
from runs import (
    AVERAGING,
    CONFIGS,
    DATA,
    SHORT,
    STUDENT,
    TEACHER,
    configs,
    curves_of,
    error_line,
    files_of,
    fit_student,
    fit_teacher,
)
from runs import test as run_test
from torch import distributed

from kdpl.__main__ import main
from kdpl.callbacks.checkpoints import CheckpointFiles
from kdpl.callbacks.finite_loss import FiniteLoss
from kdpl.callbacks.handover import SaveClassifier
from kdpl.cli.fit import parse_stage, run_stage
from kdpl.cli.stage_cli import KdplCLI
from kdpl.runtime.lock import locked
from kdpl.teacher import TeacherPromptTuning

FIT = ["fit", *DATA, *TEACHER, *SHORT]

# needs a package that kdpl does not ask for
COMET = "{class_path: lightning.pytorch.loggers.CometLogger}"
EARLY_STOPPING = "{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: val/acc, mode: up}}"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("model: {class_path: kdpl.DomainDataModule}", ["kdpl.DomainDataModule"]),
        ("data: {init_args: {shot: 4}}", ["'shot'"]),
        ([*FIT, "--data.held_out=0.5"], ["held_out"]),
        ("data: {init_args: {shots: many}}", ["shots", "many"]),
        ("model: {init_args: {vision_prompts: {depth: 9}}}", ["depth 9", "1 to 4"]),
        (
            "model: {init_args: {vision_prompts: {depth: 0}, text_prompts: {depth: 0}}}",
            ["trains nothing"],
        ),
        ("trainer: {max_time: '00:00:10:00'}", ["trainer.max_time"]),
        (f"trainer: {{logger: {COMET}}}", ["comet-ml", "install"]),
        (f"trainer: {{callbacks: [{EARLY_STOPPING}]}}", ["`mode` can be min, max, got up"]),
        pytest.param(
            "trainer: {accelerator: gpu}",
            ["--config trainer/cpu"],
            marks=pytest.mark.skipif(
                torch.cuda.is_available(), reason="needs a machine without a GPU"
            ),
        ),
        ("model", ["wrong.yaml", "no settings"]),
        ([*FIT, f"--config={CONFIGS}"], [str(CONFIGS), "is a folder"]),
        (["fit", *DATA, *STUDENT, "--out=out"], ["teacher"]),
        (FIT, ["--out"]),
        (["test", *DATA, *TEACHER, "--out=out"], ["out", "last.ckpt", "--ckpt_path"]),
    ],
)
def test_a_wrong_setting_or_option_is_named_in_one_line_and_nothing_is_written(
    wrong, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if isinstance(wrong, str):
        Path("wrong.yaml").write_text(wrong)
        wrong = [*FIT, "--config=wrong.yaml", "--out=out"]
    assert main(wrong) == 1
    error_line(capsys, *words)
    kept = ("wrong.yaml", "checked_images.json", ".lock")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in kept]


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(
    teacher_run, tmp_path, capsys
):
    before = files_of(teacher_run)
    assert fit_teacher(teacher_run, *AVERAGING, "--data.init_args.shots=4") == 1
    error_line(capsys, str(teacher_run), "data.init_args.shots", "16", "4", "choose another --out")
    assert files_of(teacher_run) == before
    (tmp_path / "file").write_text("mine")
    assert fit_teacher(tmp_path / "file") == 1
    error_line(capsys, f"{tmp_path}/file: File exists")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "mine")]


LONGER = [
    "--trainer.max_epochs=3",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
]


@pytest.fixture(scope="module")
def fits(teacher_run):
    """How each stage is fitted, into a folder."""
    return {
        "teacher": lambda out, *more: fit_teacher(out, *AVERAGING, *LONGER, *more),
        "student": lambda out, *more: fit_student(out, teacher_run, *LONGER, *more),
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, fits):
    """Each stage, fitted without interruption."""
    root = tmp_path_factory.mktemp("uninterrupted")
    for stage, fit in fits.items():
        assert fit(root / stage) == 0
    return root


def interrupted(run, owner, name, when, after=False):
    """Raise before or after a method, as a machine that goes down would, where a condition of its arguments holds."""
    original = getattr(owner, name)

    def method(self, *args, **kwargs):
        stop = when(self, *args)
        if after or not stop:
            original(self, *args, **kwargs)
        if stop:
            raise RuntimeError("interrupted")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, method)
        with pytest.raises(RuntimeError, match="interrupted"):
            run()


def at_end_of(step):
    def when(_, trainer, *__):
        return trainer.global_step == step

    return FiniteLoss, "on_train_batch_end", when


def at_validation(module):
    return module.trainer.current_epoch == 1 and not module.trainer.sanity_checking


# stage, where it is interrupted, more options, and the step of the last checkpoint
INTERRUPTIONS = {
    "ahead of workers": (
        "student",
        at_end_of(4),
        ["--checkpoint_every=1", "--data.init_args.num_workers=2"],
        3,
    ),
    # a checkpoint of an epoch's last step would be resumed without the validation of this epoch
    "validation": (
        "teacher",
        (TeacherPromptTuning, "on_validation_start", at_validation),
        ["--checkpoint_every=2"],
        2,
    ),
    "right after a checkpoint": (
        "teacher",
        (CheckpointFiles, "save_checkpoint", lambda _, saved, *__: saved["epoch"] == 1, True),
        [],
        4,
    ),
    "writing the classifier": ("student", (SaveClassifier, "write", lambda *_: True), [], 6),
}


@pytest.mark.parametrize("where", INTERRUPTIONS)
def test_an_interrupted_fit_ends_as_one_that_was_not(where, tmp_path, capsys, fits, uninterrupted):
    stage, what, more, step = INTERRUPTIONS[where]
    out = tmp_path / stage
    interrupted(lambda: fits[stage](out, *more), *what)
    last = out / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == step
    assert fits[stage](out, *more) == 0
    assert "resuming from" in capsys.readouterr().err
    # config.yaml names the folder; of an epoch that was resumed within, the row has the means of the later steps
    means = ["metrics.csv: train/loss", "metrics.csv: train/agreement"] if step == 3 else []
    expected = [f"{name} differs" for name in ("config.yaml", *means)]
    assert differences(uninterrupted / stage, out) == expected
    assert curves_of(out)["val/acc"] == curves_of(uninterrupted / stage)["val/acc"]


def test_a_second_start_into_a_folder_is_refused_while_the_first_runs(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("kdpl.runtime.lock._PATIENCE_SECONDS", 0)
    with locked(tmp_path):
        assert main([*FIT, f"--out={tmp_path}"]) == 1
    error_line(capsys, f"another process is running into {tmp_path}", "choose another --out")


def test_a_finished_fit_says_so_and_touches_nothing(teacher_run, student_run, capsys):
    for run in (teacher_run, student_run):
        before = files_of(run)
        assert main(["fit", f"--config={run}/config.yaml"]) == 0
        assert f"{run} is finished: nothing to do" in capsys.readouterr().err
        assert files_of(run) == before


def test_the_config_in_the_folder_makes_the_run_again(teacher_run, tmp_path):
    again = tmp_path / "again"
    assert main(["fit", f"--config={teacher_run}/config.yaml", f"--out={again}"]) == 0
    for name in ("class_vectors.safetensors", "prompts.safetensors"):
        assert (again / name).read_bytes() == (teacher_run / name).read_bytes()


def test_the_seed_is_that_of_the_data_and_of_what_is_drawn_for_the_model(teacher_run):
    drawn = []
    for seed in (1, 1, 2):
        options = [f"--config={teacher_run}/config.yaml", f"--seed_everything={seed}"]
        stage = parse_stage("fit", options)
        assert stage.config.data.init_args.seed == seed
        stage.build(stage.config.clone())
        drawn.append(torch.cat([p.flatten() for p in stage.model.parameters() if p.requires_grad]))
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])


def test_a_test_and_a_validation_leave_the_config_and_the_checkpoint_of_the_fit_alone(
    teacher_run, tmp_path, capsys
):
    run = shutil.copytree(teacher_run, tmp_path / "run")
    names = ("config", "checkpoints", "class", "prompts")
    kept = {name: file for name, file in files_of(run).items() if name.startswith(names)}
    results = json.loads((run / "test.json").read_text())
    assert run_test(run, f"--out={run}") == 0
    assert f"test/acc {100 * results['test/acc']:.2f} %" in capsys.readouterr().err
    assert main(["validate", f"--config={run}/config.yaml", f"--out={run}"]) == 0
    assert "val/acc" in capsys.readouterr().err
    assert kept.items() <= files_of(run).items()
    assert json.loads((run / "test.json").read_text()) == results


def test_a_group_of_processes_is_left_before_the_interpreter_ends(
    teacher_run, tmp_path, monkeypatch
):
    at_exit = []
    # otherwise Lightning would give torch other threads, and later tests other last bits
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    monkeypatch.setattr(atexit, "register", lambda function, *_, **__: at_exit.append(function))
    checkpoint = f"--ckpt_path={teacher_run}/checkpoints/last.ckpt"
    # Lightning leaves variables there that say that processes are started from outside
    with patch.dict(os.environ):
        run_test(teacher_run, checkpoint, f"--out={tmp_path}", "--trainer.strategy=ddp")
    assert distributed.is_initialized()
    for function in at_exit:
        if function.__module__.startswith("kdpl."):
            function()
    assert not distributed.is_initialized()


def settings_of(*options):
    config = parse_stage("fit", options).config.as_dict()
    return {section: config[section] for section in ("data", "model", "trainer", "out")}


def test_configs_are_merged_and_their_order_counts_only_where_they_overlap(tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text("data: {init_args: {shots: 3}}\n")
    options = [f"--config={more}", "--trainer.max_epochs=7", "--out=x"]
    settings = settings_of(*DATA, *TEACHER, *options)
    data, trainer = settings["data"]["init_args"], settings["trainer"]
    assert (data["shots"], data["dataset"], data["batch_size"]) == (3, "digits", 16)
    assert settings["model"]["init_args"]["clip"]["model"] == "tiny-teacher"
    assert (trainer["accelerator"], trainer["max_epochs"], settings["out"]) == ("cpu", 7, "x")
    parts = [*DATA, *configs("logger/csv.yaml"), *TEACHER]
    assert settings_of(*parts[::-1]) == settings_of(*parts)


def test_a_short_option_means_the_same_as_the_long_one_wherever_it_stands(tmp_path):
    file, settings = tmp_path / "mine.yaml", []
    for init, data, model in (
        ("", "{shots: 3}", "{text_prompts: {depth: 1}}"),
        (".init_args", "{init_args: {shots: 3}}", "{init_args: {text_prompts: {depth: 1}}}"),
    ):
        file.write_text(f"data: {data}\nmodel: {model}\n")
        options = (f"--config={file}", f"--data{init}.batch_size=5")
        settings.append(settings_of(*DATA, *TEACHER, *options))
    assert settings[0] == settings[1]
    given = settings[0]["data"]["init_args"]
    assert (given["shots"], given["batch_size"]) == (3, 5)


@pytest.mark.parametrize("number", [1, 1.0])
def test_one_batch_is_not_read_as_all_batches(number):
    trainer = settings_of(*DATA, *TEACHER, f"--trainer.limit_train_batches={number}")["trainer"]
    assert repr(trainer["limit_train_batches"]) == repr(number)


def test_help_is_short_and_the_full_help_lists_the_trainers_options(capsys):
    assert main(["fit", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m kdpl fit --config FILE … --out FOLDER")
    assert out.count("\n") <= 25
    with pytest.raises(SystemExit):
        main(["fit", "--full_help"])
    assert "--trainer.max_epochs" in capsys.readouterr().out


def test_nothing_that_a_stage_builds_outlives_its_run(teacher_run, monkeypatch):
    models = []
    monkeypatch.setattr(KdplCLI, "_evaluate", lambda stage: models.append(weakref.ref(stage.model)))
    stage = parse_stage("test", [f"--config={teacher_run}/config.yaml"])
    run_stage(stage)
    assert [model() for model in models] == [None]
    assert stage.config.out == str(teacher_run)
