import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from kdpl.callbacks.checkpoint_files import CheckpointFiles
from kdpl.runtime.run_lock import RunLock
from runs import (
    AVERAGING,
    CONFIGS,
    DATA,
    SHORT,
    SPEED,
    STUDENT,
    TEACHER,
    configs,
    curves_of,
    files_of,
    fit_student,
    fit_teacher,
    image_folder,
    rows_of,
)
from runs import test as run_test

from kdpl.__main__ import main
from kdpl.callbacks.handover import FreezeClassVectors
from kdpl.callbacks.throughput import Throughput
from kdpl.teacher import TeacherPromptTuning

FIT = ["fit", *DATA, *TEACHER, *SHORT]


def one_line(capsys, *words):
    """Whether stderr is one line that has these words."""
    err = capsys.readouterr().err
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert "Traceback" not in err
    for word in words:
        assert word in err, err
    return err


def nothing_written(out):
    # what was seen of the images need not be looked at again by a second start
    assert not [path for path in Path(out).rglob("*") if path.name != "checked_images.json"]


WRONG_SETTINGS = {
    "key of the model": ("model: {init_args: {regularizer: {text: 1}}}", ["'regularizer'", "'regularizers'"]),
    "key of the data": ("data: {init_args: {shot: 1}}", ["DomainDataModule", "'shot'", "did you mean 'shots'?"]),
    "key of a group": ("model: {init_args: {optim: {learning_rate: 1}}}", ["optim", "'learning_rate'", "lr, momentum"]),
    "key of the trainer": ("trainer: {max_epoch: 1}", ["trainer", "'max_epoch'", "did you mean 'max_epochs'?"]),
    "key at the top": ("trainr: {max_epochs: 1}", ["'trainr'", "did you mean 'trainer'?"]),
    "key of a logger": (
        "trainer: {logger: {class_path: kdpl.runtime.loggers.MetricsCSV, init_args: {dir: x}}}",
        ["MetricsCSV", "'dir'", "save_dir"],
    ),
    "type of the data": ("data: {init_args: {shots: many}}", ["data.init_args.shots", "many", "int"]),
    "type of the trainer": ("trainer: {max_epochs: ten}", ["trainer.max_epochs", "ten", "int"]),
    "type of a choice": ("model: {init_args: {optim: {optimizer: adam}}}", ["optim.optimizer", "adam", "'adamw'"]),
    "value for a section": ("model: {init_args: {vision_prompts: 3}}", ["vision_prompts", "3", "length, depth"]),
    "class of the model": ("model: {class_path: kdpl.TeacherTuning}", ["TeacherTuning", "kdpl.TeacherPromptTuning?"]),
    "class of the data": ("data: {class_path: my.Data}", ["setting data", "my.Data"]),
    "class of another kind": ("model: {class_path: kdpl.DomainDataModule}", ["model", "kdpl.DomainDataModule"]),
    "seed": ("seed_everything: -3", ["seed_everything", "-3"]),
    "no seed": ("seed_everything: false", ["seed_everything", "False", "int"]),
    "dataset": ("data: {init_args: {dataset: digit}}", ["'digit'", "digits"]),
    "CLIP model": ("model: {init_args: {clip: {model: tiny-techer}}}", ["'tiny-techer'", "tiny-teacher"]),
    "CLIP weights": ("model: {init_args: {clip: {pretrained: glyph}}}", ["'glyph'", "glyphs"]),
    "weights file": ("model: {init_args: {clip: {pretrained: gone/w.safetensors}}}", ["gone/w.safetensors"]),
    "depth": ("model: {init_args: {vision_prompts: {depth: 9}}}", ["depth 9", "1 to 4"]),
    "nothing to train": (
        "model: {init_args: {vision_prompts: {depth: 0}, text_prompts: {depth: 0}}}",
        ["trains nothing", "trainer.max_epochs"],
    ),
    "epochs": ("trainer: {max_epochs: -1}", ["trainer.max_epochs"]),
    "accelerator": ("trainer: {accelerator: tpu}", ["torch_xla", "install"]),
    "devices": ("trainer: {devices: 0}", ["devices=0"]),
    "broken YAML": ("model: [", ["wrong.yaml", "line", "not YAML"]),
    "tab": ("model:\n\tx: 1", ["wrong.yaml", "line 2", "not YAML"]),
    "a word": ("model", ["wrong.yaml", "no settings"]),
    "nothing": ("# nothing", ["wrong.yaml", "no settings"]),
}


@pytest.mark.parametrize("case", WRONG_SETTINGS)
def test_a_wrong_setting_is_one_line_that_names_it_and_nothing_is_written(case, tmp_path, capsys):
    text, words = WRONG_SETTINGS[case]
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text)
    assert main([*FIT, f"--config={wrong}", f"--out={tmp_path / 'out'}"]) == 1
    one_line(capsys, *words)
    nothing_written(tmp_path / "out")


WRONG_OPTIONS = {
    "no settings": (["fit"], ["fit", "--config"]),
    "no settings for a test": (["test"], ["test", "--config"]),
    "no config file": ([*FIT, "--config=gone.yaml"], ["gone.yaml", "does not exist"]),
    "no config file, as two words": ([*FIT, "--config", "gone.yaml"], ["gone.yaml", "does not exist"]),
    "a folder as config": ([*FIT, f"--config={CONFIGS}"], [str(CONFIGS), "is a folder"]),
    "no model": (["fit", *DATA, "--out=out"], ["model", "--config"]),
    "no dataset": (["fit", *TEACHER, "--out=out"], ["dataset", "--data.init_args.dataset"]),
    "no teacher": (["fit", *DATA, *STUDENT, "--out=out"], ["teacher", "--model.init_args.teacher"]),
    "no folder": (FIT, ["--out"]),
    "option without its prefix": ([*FIT, "--shots=4", "--out=out"], ["--shots", "--data.init_args.shots"]),
    "misspelt option": ([*FIT, "--data.init_args.shot=4", "--out=out"], ["'shot'", "did you mean 'shots'?"]),
    "abbreviated option": ([*FIT, "--trainer.max_epoch=4", "--out=out"], ["max_epoch", "trainer.max_epochs"]),
    "too many processes": (
        [*FIT, "--trainer.devices=9999", "--out=out"],
        ["devices is 9999", "cores"],
    ),
    "no checkpoint file": (["test", *DATA, *TEACHER, "--ckpt_path=gone.ckpt", "--out=out"], ["gone.ckpt"]),
    "untrained teacher": (["test", *DATA, *TEACHER, "--out=out"], ["out", "last.ckpt", "--ckpt_path"]),
    "untrained student": (["test", *DATA, *STUDENT, "--model.init_args.teacher=t", "--out=out"], ["out", "last.ckpt"]),
    "missing teacher": (["fit", *DATA, *STUDENT, "--model.init_args.teacher=t", "--out=out"], ["t/class_vectors.s"]),
}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_a_wrong_option_is_one_line_that_names_it_and_nothing_is_written(case, tmp_path, capsys, monkeypatch):
    args, words = WRONG_OPTIONS[case]
    monkeypatch.chdir(tmp_path)
    assert main(args) == 1
    one_line(capsys, *words)
    nothing_written(tmp_path)


def fit_folder(root, out, *more):
    data = [*configs("data/folder.yaml", "trainer/cpu.yaml"), f"--data.init_args.root={root}"]
    few = ["--data.init_args.shots=4", "--data.init_args.num_workers=0", f"--out={out}"]
    return main(["fit", *data, *TEACHER, *SHORT, *few, *more])


def test_a_missing_dataset_folder_is_named(tmp_path, capsys):
    assert fit_folder(tmp_path / "gone", tmp_path / "out") == 1
    one_line(capsys, str(tmp_path / "gone"), "does not exist")
    nothing_written(tmp_path / "out")


def test_a_class_folder_without_images_is_named(tmp_path, capsys):
    (image_folder(tmp_path / "data") / "train" / "empty").mkdir()
    assert fit_folder(tmp_path / "data", tmp_path / "out") == 1
    one_line(capsys, "train/empty", "no images")
    nothing_written(tmp_path / "out")


def test_fewer_images_than_shots_is_said_with_both_numbers(tmp_path, capsys):
    image_folder(tmp_path / "data", images=3)
    assert fit_folder(tmp_path / "data", tmp_path / "out") == 1
    one_line(capsys, "'cat'", "3 training images", "shots", "4")
    nothing_written(tmp_path / "out")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_and_leaves_no_run(workers, tmp_path, capsys):
    image_folder(tmp_path / "data")
    (tmp_path / "data" / "train" / "dog" / "2.png").write_bytes(b"no image")
    assert fit_folder(tmp_path / "data", tmp_path / "out", f"--data.init_args.num_workers={workers}") == 1
    one_line(capsys, "train/dog/2.png", "cannot be read")
    assert not (tmp_path / "out" / "config.yaml").exists()
    assert not list((tmp_path / "out").rglob("*.ckpt"))
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_failed_start_does_not_stand_in_the_way_of_a_corrected_one(tmp_path):
    image_folder(tmp_path / "data")
    broken = tmp_path / "data" / "train" / "dog" / "2.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"no image")
    assert fit_folder(tmp_path / "data", tmp_path / "out") == 1
    broken.write_bytes(whole)
    assert fit_folder(tmp_path / "data", tmp_path / "out", "--data.init_args.shots=3") == 0


def test_class_vectors_for_other_class_names_are_refused(tmp_path, capsys, teacher_run):
    image_folder(tmp_path / "data")
    args = [
        *configs("data/folder.yaml", "trainer/cpu.yaml"),
        *STUDENT,
        *SHORT,
        f"--data.init_args.root={tmp_path}/data",
    ]
    assert main(["fit", *args, f"--model.init_args.teacher={teacher_run}", f"--out={tmp_path}/out"]) == 1
    one_line(capsys, str(teacher_run), "other class names", "10 classes", "2")
    nothing_written(tmp_path / "out")


def test_class_vectors_of_another_teacher_are_refused(tmp_path, capsys, teacher_run):
    assert fit_teacher(tmp_path / "other", "--seed_everything=2") == 0
    capsys.readouterr()
    vectors = f"--model.init_args.class_vectors={tmp_path}/other/class_vectors.safetensors"
    assert fit_student(tmp_path / "out", teacher_run, vectors) == 1
    one_line(capsys, "other/class_vectors.safetensors", "another teacher", str(teacher_run))
    nothing_written(tmp_path / "out")


def test_a_folder_with_a_run_of_other_settings_is_refused_and_left_alone(teacher_run, capsys):
    before = files_of(teacher_run)
    assert fit_teacher(teacher_run, *AVERAGING, "--data.init_args.shots=4") == 1
    one_line(capsys, str(teacher_run), "data.init_args.shots", "16", "4", "choose another --out")
    assert files_of(teacher_run) == before


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert main([*FIT, f"--out={tmp_path / 'out'}"]) == 1
    one_line(capsys, str(tmp_path / "out"), "is a file")
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign"])
@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_damaged_checkpoint_is_named(command, damage, teacher_run, tmp_path, capsys):
    file = tmp_path / "out" / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    whole = (teacher_run / "checkpoints" / "last.ckpt").read_bytes()
    if damage == "foreign":
        torch.save({"weights": torch.zeros(3)}, file)
    else:
        file.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    before = files_of(tmp_path)
    assert main([command, *DATA, *TEACHER, *(SHORT if command == "fit" else []), f"--out={tmp_path / 'out'}"]) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("error: ")
    assert str(file) in err[-1]
    assert files_of(tmp_path) == before


def cut_in_epoch(monkeypatch, epoch):
    """Raise in the second batch of an epoch, as a machine that goes down would."""
    original = Throughput.on_train_batch_end

    def cut(self, trainer, *args):
        if trainer.current_epoch == epoch and trainer.global_step > 2 * epoch + 1:
            raise RuntimeError("cut")
        return original(self, trainer, *args)

    monkeypatch.setattr(Throughput, "on_train_batch_end", cut)


def without_speed(path):
    return [{k: v for k, v in row.items() if k not in SPEED} for row in rows_of(path)]


LONGER = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=2"]


def require_same_run(cut, whole):
    for name in ("class_vectors.safetensors", "prompts.safetensors", "classifier/model.safetensors"):
        assert (cut / name).exists() == (whole / name).exists()
        if (cut / name).exists():
            assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    a, b = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (cut, whole))
    assert a["state_dict"].keys() == b["state_dict"].keys()
    assert all(torch.equal(a["state_dict"][k], b["state_dict"][k]) for k in a["state_dict"])
    assert a["global_step"] == b["global_step"] == 6
    # a row of a step that was cut and done again may stand there twice
    kept = [row for row in without_speed(cut / "metrics.csv") if any(v for k, v in row.items() if "/" in k)]
    assert kept == [row for row in without_speed(whole / "metrics.csv") if any(v for k, v in row.items() if "/" in k)]
    assert {row["epoch"] for row in kept} == {"0", "1", "2"}


@pytest.fixture(scope="module")
def whole_teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "teacher"
    assert fit_teacher(out, *AVERAGING, *LONGER) == 0
    return out


@pytest.fixture(scope="module")
def whole_student(tmp_path_factory, teacher_run):
    out = tmp_path_factory.mktemp("whole") / "student"
    assert fit_student(out, teacher_run, *LONGER) == 0
    return out


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_cut_teacher_goes_on_and_ends_as_an_uncut_one(epoch, tmp_path, capsys, monkeypatch, whole_teacher):
    with monkeypatch.context() as patch:
        cut_in_epoch(patch, epoch)
        with pytest.raises(RuntimeError, match="cut"):
            fit_teacher(tmp_path / "out", *AVERAGING, *LONGER)
    assert not (tmp_path / "out" / "class_vectors.safetensors").exists()
    assert (tmp_path / "out" / "checkpoints" / "last.ckpt").exists() == (epoch > 0)
    assert (tmp_path / "out" / "config.yaml").exists() == (epoch > 0)
    assert fit_teacher(tmp_path / "out", *AVERAGING, *LONGER) == 0
    assert ("going on from" in capsys.readouterr().err) == (epoch > 0)
    require_same_run(tmp_path / "out", whole_teacher)


def test_a_student_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before(
    tmp_path, capsys, monkeypatch, teacher_run, whole_student
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        cut_in_epoch(patch, 2)
        with pytest.raises(RuntimeError, match="cut"):
            fit_student(out, teacher_run, *LONGER)
    last, previous = (out / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    assert [torch.load(file, weights_only=True)["epoch"] for file in (previous, last)] == [0, 1]
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=f"{last} is damaged .*going on from the one before, {previous}"):
        assert fit_student(out, teacher_run, *LONGER) == 0
    assert f"going on from {previous}" in capsys.readouterr().err
    # or whatever is done with this config later would be done with that checkpoint
    assert "\nckpt_path: null\n" in (out / "config.yaml").read_text()
    weights = "classifier/model.safetensors"
    assert (out / weights).read_bytes() == (whole_student / weights).read_bytes()
    assert [file.name for file in (out / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_run_cut_right_after_an_epochs_checkpoint_lacks_no_metrics(tmp_path, monkeypatch, whole_teacher):
    original = CheckpointFiles.save_checkpoint

    def cut(self, checkpoint, *args, **kwargs):
        original(self, checkpoint, *args, **kwargs)
        if checkpoint["epoch"] == 1:
            raise RuntimeError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFiles, "save_checkpoint", cut)
        with pytest.raises(RuntimeError, match="cut"):
            fit_teacher(tmp_path / "out", *AVERAGING, *LONGER)
    assert torch.load(tmp_path / "out/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert fit_teacher(tmp_path / "out", *AVERAGING, *LONGER) == 0
    require_same_run(tmp_path / "out", whole_teacher)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_cut_within_an_epoch_goes_on_with_the_next_batch(workers, tmp_path, capsys, monkeypatch, teacher_run):
    options = ["--trainer.limit_train_batches=1.0", f"--data.init_args.num_workers={workers}", "--checkpoint_every=3"]
    assert fit_student(tmp_path / "whole", teacher_run, *options) == 0
    original = Throughput.on_train_batch_end

    def cut(self, trainer, *args):
        if trainer.global_step == 18:
            raise RuntimeError("cut")
        return original(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_end", cut)
        with pytest.raises(RuntimeError, match="cut"):
            fit_student(tmp_path / "cut", teacher_run, *options)
    last = torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (1, 15), "700 images in batches of 64 are 10 steps an epoch"
    assert fit_student(tmp_path / "cut", teacher_run, *options) == 0
    assert "going on from" in capsys.readouterr().err
    weights = "classifier/model.safetensors"
    assert (tmp_path / "cut" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    assert curves_of(tmp_path / "cut") == curves_of(tmp_path / "whole"), "means over all the epoch's images"


def test_a_run_killed_in_the_validation_after_a_checkpoint_at_an_epochs_last_step_goes_on_with_the_epochs_end(
    tmp_path, monkeypatch, whole_teacher
):
    options = [*AVERAGING, *LONGER, "--checkpoint_every=2"]

    def cut(self, *args):
        if self.trainer.current_epoch == 1 and not self.trainer.sanity_checking:
            raise RuntimeError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(TeacherPromptTuning, "on_validation_start", cut)
        with pytest.raises(RuntimeError, match="cut"):
            fit_teacher(tmp_path / "out", *options)
    last = torch.load(tmp_path / "out/checkpoints/last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (0, 2), "nothing is saved at an epoch's last step but by its end"
    assert fit_teacher(tmp_path / "out", *options) == 0
    require_same_run(tmp_path / "out", whole_teacher)


def test_a_limit_that_would_end_an_epoch_in_its_middle_is_refused(tmp_path, capsys):
    assert fit_teacher(tmp_path / "out", "--trainer.max_time=00:00:10:00") == 1
    assert "error: trainer.max_time would end an epoch in its middle" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_settings_are_compared_once_the_folder_is_held(tmp_path, teacher_run, capsys, monkeypatch):
    """While a start waits for the lock, a run of other settings may come to be there."""
    out = tmp_path / "out"
    original = RunLock.__init__

    def wait(self, folder, *args):
        shutil.copytree(teacher_run, folder)
        for name in ("class_vectors.safetensors", "prompts.safetensors"):
            (folder / name).unlink()
        original(self, folder, *args)

    monkeypatch.setattr(RunLock, "__init__", wait)
    assert fit_teacher(out, *AVERAGING, "--model.init_args.optim.lr=0.5") == 1
    assert "holds a run with other settings (model.init_args.optim.lr is" in capsys.readouterr().err
    assert not (out / ".lock").exists()


def test_a_second_fit_into_a_folder_is_refused_while_the_first_runs(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    hold = f"""
import sys
from pathlib import Path
from kdpl.runtime.run_lock import RunLock
lock = RunLock(Path({str(out)!r}))
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        assert fit_teacher(out) == 1
        one_line(capsys, f"another process is running into {out}", "choose another --out")
        first.kill()
        first.wait()
    assert [file.name for file in out.iterdir()] == [".lock"]
    assert fit_teacher(out, "--trainer.max_epochs=1") == 0, "a killed process holds nothing"
    assert not (out / ".lock").exists()


def test_a_copied_runs_config_does_not_lead_back_to_the_original(teacher_run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(teacher_run, copy)
    before = files_of(teacher_run)
    for command in ("test", "validate", "fit"):
        assert main([command, f"--config={copy}/config.yaml"]) == 1
        one_line(capsys, f"{copy}/config.yaml is of a run in {teacher_run}", f"give --out {copy}")
    assert files_of(teacher_run) == before
    assert main(["test", f"--config={copy}/config.yaml", f"--out={copy}"]) == 0
    assert files_of(teacher_run) == before
    assert f"using {copy}/checkpoints/last.ckpt" in capsys.readouterr().err


def test_a_fit_into_the_folder_of_a_whole_run_is_refused(tmp_path, capsys):
    (tmp_path / "run.json").write_text("{}")
    before = files_of(tmp_path)
    assert fit_teacher(tmp_path) == 1
    one_line(capsys, f"{tmp_path} holds a whole run", "choose another --out")
    assert files_of(tmp_path) == before


def test_a_fit_that_fails_at_once_leaves_no_folder(tmp_path, capsys):
    assert fit_student(tmp_path / "out" / "student", tmp_path / "nowhere") == 1
    assert not (tmp_path / "out" / "student").exists()


def test_a_teacher_cut_between_its_last_epoch_and_freezing_freezes_the_same(tmp_path, monkeypatch, whole_teacher):
    def cut(self, trainer, module, folder):
        raise RuntimeError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(FreezeClassVectors, "write", cut)
        with pytest.raises(RuntimeError, match="cut"):
            fit_teacher(tmp_path / "out", *AVERAGING, *LONGER)
    assert fit_teacher(tmp_path / "out", *AVERAGING, *LONGER) == 0
    require_same_run(tmp_path / "out", whole_teacher)


def test_a_cut_student_goes_on_and_ends_as_an_uncut_one(tmp_path, monkeypatch, teacher_run, whole_student):
    assert "mean_token" in (whole_student / "config.yaml").read_text()
    with monkeypatch.context() as patch:
        cut_in_epoch(patch, 1)
        with pytest.raises(RuntimeError, match="cut"):
            fit_student(tmp_path / "out", teacher_run, *LONGER)
    assert not (tmp_path / "out" / "classifier").exists()
    assert fit_student(tmp_path / "out", teacher_run, *LONGER) == 0
    require_same_run(tmp_path / "out", whole_student)


def test_a_finished_fit_says_so_and_touches_nothing(teacher_run, student_run, capsys):
    for run, fit in (
        (teacher_run, lambda: fit_teacher(teacher_run, *AVERAGING)),
        (student_run, lambda: fit_student(student_run, teacher_run)),
    ):
        before = files_of(run)
        assert fit() == 0
        assert f"{run} is finished: nothing to do" in capsys.readouterr().err
        assert files_of(run) == before


def test_the_config_in_the_folder_makes_the_run_again(teacher_run, tmp_path):
    assert main(["fit", f"--config={teacher_run}/config.yaml", f"--out={tmp_path / 'again'}"]) == 0
    for name in ("class_vectors.safetensors", "prompts.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (teacher_run / name).read_bytes()


def test_a_test_and_a_validation_leave_the_config_and_the_checkpoint_of_the_fit_alone(teacher_run, capsys):
    kept = {k: v for k, v in files_of(teacher_run).items() if k.startswith(("config", "checkpoints", "class", "prom"))}
    results = json.loads((teacher_run / "test.json").read_text())
    assert run_test(teacher_run) == 0
    assert f"test/acc {100 * results['test/acc']:.2f} %" in capsys.readouterr().err
    assert main(["validate", f"--config={teacher_run}/config.yaml"]) == 0
    assert "val/acc" in capsys.readouterr().err
    after = files_of(teacher_run)
    assert all(after[name] == content for name, content in kept.items())
    assert json.loads((teacher_run / "test.json").read_text()) == results


def test_another_seed_tunes_other_prompts(teacher_run, tmp_path):
    assert fit_teacher(tmp_path / "out", *AVERAGING, "--seed_everything=2") == 0
    assert (tmp_path / "out/prompts.safetensors").read_bytes() != (teacher_run / "prompts.safetensors").read_bytes()


def printed(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main([*args, "--print_config"])
    assert stop.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)


def test_print_config_shows_all_of_several_merged_configs(capsys, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text("data: {init_args: {shots: 3}}\n")
    config = printed(capsys, "fit", *DATA, *TEACHER, f"--config={more}", "--trainer.max_epochs=7", "--out=x")
    assert config["data"]["init_args"]["shots"] == 3
    assert config["data"]["init_args"]["dataset"] == "digits"
    assert config["data"]["init_args"]["batch_size"] == 16
    assert config["model"]["init_args"]["clip"]["model"] == "tiny-teacher"
    assert config["trainer"]["accelerator"] == "cpu"
    assert config["trainer"]["max_epochs"] == 7
    assert config["out"] == "x"


def test_the_order_of_configs_is_free_where_they_do_not_overlap(capsys):
    parts = [*configs("data/digits.yaml", "trainer/cpu.yaml", "logger/csv.yaml"), *TEACHER]
    first = printed(capsys, "fit", *parts)
    assert printed(capsys, "fit", *parts[::-1]) == first
    assert printed(capsys, "fit", *parts[2:], *parts[:2]) == first


def test_an_overlay_counts_where_it_comes_after_what_it_changes(capsys):
    config = printed(capsys, "fit", *DATA, *TEACHER, *configs("teacher/ivlp.yaml"))
    assert config["model"]["init_args"]["regularizers"] == {"text": 0.0, "image": 0.0, "logits": 0.0}
    assert config["model"]["init_args"]["clip"]["model"] == "tiny-teacher"


def test_nothing_of_a_run_lands_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit_teacher("runs/a", "--trainer.max_epochs=1") == 0
    assert run_test("runs/a") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]
    assert not any(math.isnan(v) for v in json.loads(Path("runs/a/test.json").read_text()).values())
