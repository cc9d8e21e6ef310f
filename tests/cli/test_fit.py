import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
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
    image_folder,
)
from runs import test as run_test
from soak.comparison import differences

from kdpl.__main__ import main
from kdpl.callbacks.checkpoints import CheckpointFiles
from kdpl.callbacks.handover import FreezeClassVectors, SaveClassifier
from kdpl.callbacks.throughput import Throughput
from kdpl.runtime.lock import RunLock
from kdpl.teacher import TeacherPromptTuning

FIT = ["fit", *DATA, *TEACHER, *SHORT]


def nothing_written(out):
    # images that were checked need not be checked again
    kept = ("checked_images.json", ".lock")
    return not [path for path in Path(out).rglob("*") if path.is_file() and path.name not in kept]


WRONG_CONFIGS = {
    "key of the model": ("model: {init_args: {regularizer: {text: 1}}}", ["regularizer"]),
    "key of the data": ("data: {init_args: {shot: 1}}", ["shot"]),
    "key of a group": ("model: {init_args: {optim: {learning_rate: 1}}}", ["optim", "learning_rate"]),
    "key of the trainer": ("trainer: {max_epoch: 1}", ["max_epoch"]),
    "key at the top": ("trainr: {max_epochs: 1}", ["trainr"]),
    "key of a logger": (
        "trainer: {logger: {class_path: kdpl.runtime.loggers.MetricsCSV, init_args: {dir: x}}}",
        ["dir"],
    ),
    "type of the data": ("data: {init_args: {shots: many}}", ["shots", "many"]),
    "type of the trainer": ("trainer: {max_epochs: ten}", ["max_epochs", "ten"]),
    "type of a choice": ("model: {init_args: {optim: {optimizer: adam}}}", ["adam"]),
    "value for a section": ("model: {init_args: {vision_prompts: 3}}", ["vision_prompts", "3"]),
    "class of the model": ("model: {class_path: kdpl.TeacherTuning}", ["kdpl.TeacherTuning"]),
    "class of the data": ("data: {class_path: my.Data}", ["my.Data"]),
    "class of another kind": ("model: {class_path: kdpl.DomainDataModule}", ["kdpl.DomainDataModule"]),
    "seed": ("seed_everything: -3", ["seed_everything", "-3"]),
    "no seed": ("seed_everything: false", ["seed", "False"]),
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
    "time limit": ("trainer: {max_time: '00:00:10:00'}", ["trainer.max_time"]),
    "accelerator": ("trainer: {accelerator: tpu}", ["torch_xla", "install"]),
    "devices": ("trainer: {devices: 0}", ["devices"]),
    "broken YAML": ("model: [", ["wrong.yaml", "line", "not YAML"]),
    "tab": ("model:\n\tx: 1", ["wrong.yaml", "line 2", "not YAML"]),
    "a word": ("model", ["wrong.yaml", "no settings"]),
    "nothing": ("# nothing", ["wrong.yaml", "no settings"]),
}


@pytest.mark.parametrize("case", WRONG_CONFIGS)
def test_a_wrong_setting_is_named_in_one_line_and_nothing_is_written(case, tmp_path, capsys):
    text, words = WRONG_CONFIGS[case]
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text)
    assert main([*FIT, f"--config={wrong}", f"--out={tmp_path / 'out'}"]) == 1
    error_line(capsys, *words)
    assert nothing_written(tmp_path / "out")


TO_OUT = [*FIT, "--out=out"]
WRONG_OPTIONS = {
    "no settings": (["fit"], ["fit", "--config"]),
    "no settings for a test": (["test"], ["test", "--config"]),
    "no config file": ([*FIT, "--config=gone.yaml"], ["gone.yaml", "does not exist"]),
    "no config file, as two words": ([*FIT, "--config", "gone.yaml"], ["gone.yaml", "does not exist"]),
    "a folder as config": ([*FIT, f"--config={CONFIGS}"], [str(CONFIGS), "is a folder"]),
    "no model": (["fit", *DATA, "--out=out"], ["model"]),
    "no dataset": (["fit", *TEACHER, "--out=out"], ["dataset"]),
    "no teacher": (["fit", *DATA, *STUDENT, "--out=out"], ["teacher"]),
    "no folder": (FIT, ["--out"]),
    "option without its prefix": ([*TO_OUT, "--shots=4"], ["--shots"]),
    "misspelt option": ([*TO_OUT, "--data.init_args.shot=4"], ["shot"]),
    "abbreviated option": ([*TO_OUT, "--trainer.max_epoch=4"], ["max_epoch"]),
    "no checkpoint file": (["test", *DATA, *TEACHER, "--ckpt_path=gone.ckpt", "--out=out"], ["gone.ckpt"]),
    "untrained teacher": (["test", *DATA, *TEACHER, "--out=out"], ["out", "last.ckpt", "--ckpt_path"]),
    "untrained student": (["test", *DATA, *STUDENT, "--model.init_args.teacher=t", "--out=out"], ["t/class_vectors.s"]),
    "missing teacher": (["fit", *DATA, *STUDENT, "--model.init_args.teacher=t", "--out=out"], ["t/class_vectors.s"]),
}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_a_wrong_option_is_named_in_one_line_and_nothing_is_written(case, tmp_path, capsys, monkeypatch):
    args, words = WRONG_OPTIONS[case]
    monkeypatch.chdir(tmp_path)
    assert main(args) == 1
    error_line(capsys, *words)
    assert nothing_written(tmp_path)


def fit_folder(root, out, *more):
    data = [*configs("data/folder.yaml", "trainer/cpu.yaml"), f"--data.init_args.root={root}"]
    few = ["--data.init_args.shots=4", "--data.init_args.num_workers=0", f"--out={out}"]
    return main(["fit", *data, *TEACHER, *SHORT, *few, *more])


def test_a_missing_dataset_folder_is_named(tmp_path, capsys):
    assert fit_folder(tmp_path / "gone", tmp_path / "out") == 1
    error_line(capsys, str(tmp_path / "gone"), "does not exist")
    assert nothing_written(tmp_path / "out")


def test_a_class_folder_without_images_is_named(tmp_path, capsys):
    (image_folder(tmp_path / "data") / "train" / "empty").mkdir()
    assert fit_folder(tmp_path / "data", tmp_path / "out") == 1
    error_line(capsys, "train/empty", "no images")


def test_fewer_images_than_shots_is_reported_with_both_numbers(tmp_path, capsys):
    image_folder(tmp_path / "data", images=3)
    assert fit_folder(tmp_path / "data", tmp_path / "out") == 1
    error_line(capsys, "'cat'", "3 training images", "shots", "4")


def test_an_unreadable_image_is_named_and_a_corrected_start_is_not_refused(tmp_path, capsys):
    image_folder(tmp_path / "data")
    broken = tmp_path / "data" / "train" / "dog" / "2.png"
    intact = broken.read_bytes()
    broken.write_bytes(b"not an image")
    assert fit_folder(tmp_path / "data", tmp_path / "out", "--data.init_args.num_workers=1") == 1
    error_line(capsys, "train/dog/2.png", "cannot be read")
    assert nothing_written(tmp_path / "out")
    broken.write_bytes(intact)
    assert fit_folder(tmp_path / "data", tmp_path / "out", "--data.init_args.shots=3") == 0


def test_class_vectors_of_other_class_names_and_of_another_teacher_are_refused(tmp_path, capsys, teacher_run):
    root = image_folder(tmp_path / "data")
    folder = [*configs("data/folder.yaml"), f"--data.init_args.root={root}"]
    assert fit_student(tmp_path / "out", teacher_run, *folder) == 1
    error_line(capsys, "other class names", "10 classes", "2")
    assert fit_teacher(tmp_path / "other", "--seed_everything=2", "--trainer.max_epochs=1") == 0
    capsys.readouterr()
    vectors = f"--model.init_args.class_vectors={tmp_path}/other/class_vectors.safetensors"
    assert fit_student(tmp_path / "out", teacher_run, vectors) == 1
    error_line(capsys, "another teacher", str(teacher_run))
    assert nothing_written(tmp_path / "out")


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(teacher_run, tmp_path, capsys):
    before = files_of(teacher_run)
    assert fit_teacher(teacher_run, *AVERAGING, "--data.init_args.shots=4") == 1
    error_line(capsys, str(teacher_run), "data.init_args.shots", "16", "4", "choose another --out")
    assert files_of(teacher_run) == before
    (tmp_path / "run.json").write_text("{}")
    assert fit_teacher(tmp_path) == 1
    error_line(capsys, f"{tmp_path} holds a whole run", "choose another --out")
    assert fit_teacher(tmp_path / "run.json") == 1
    error_line(capsys, "run.json is a file")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("run.json", "{}")]


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign"])
@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_damaged_checkpoint_is_named(command, damage, teacher_run, tmp_path, capsys):
    file = tmp_path / "out" / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    intact = (teacher_run / "checkpoints" / "last.ckpt").read_bytes()
    if damage == "foreign":
        torch.save({"weights": torch.zeros(3)}, file)
    else:
        file.write_bytes(intact[: len(intact) // 2] if damage == "truncated" else b"")
    before = files_of(file.parent)
    assert main([command, *DATA, *TEACHER, *(SHORT if command == "fit" else []), f"--out={tmp_path / 'out'}"]) == 1
    error_line(capsys, str(file))
    assert files_of(file.parent) == before


LONGER = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=2"]


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


def interrupt(patch, owner, name, when, after=False):
    """Raise before or after a method, as a machine that goes down would, where a condition of its arguments holds."""
    original = getattr(owner, name)

    def method(self, *args, **kwargs):
        stop = when(self, *args)
        if after or not stop:
            original(self, *args, **kwargs)
        if stop:
            raise RuntimeError("interrupted")

    patch.setattr(owner, name, method)


def at_step(step):
    """The end of a step, as arguments of ``interrupt``."""
    return Throughput, "on_train_batch_end", lambda _, trainer, *__: trainer.global_step == step


def always(*_):
    return True


# stage, where it is interrupted, more options, and the step of the last checkpoint
INTERRUPTIONS = {
    "first epoch of a teacher": ("teacher", at_step(2), [], None),
    "last epoch of a teacher": ("teacher", at_step(6), [], 4),
    "last epoch of a student": ("student", at_step(6), [], 4),
    "within an epoch": ("student", at_step(4), ["--checkpoint_every=1"], 3),
    # a checkpoint of an epoch's last step would be resumed without the validation of this epoch
    "validation after an epoch": (
        "teacher",
        (
            TeacherPromptTuning,
            "on_validation_start",
            lambda self: self.trainer.current_epoch == 1 and not self.trainer.sanity_checking,
        ),
        ["--checkpoint_every=2"],
        2,
    ),
    "right after a checkpoint": (
        "teacher",
        (CheckpointFiles, "save_checkpoint", lambda _, checkpoint, *__: checkpoint["epoch"] == 1, True),
        [],
        4,
    ),
    "freezing": ("teacher", (FreezeClassVectors, "write", always), [], 6),
    "after freezing": ("teacher", (FreezeClassVectors, "write", always, True), [], 6),
    "writing the classifier": ("student", (SaveClassifier, "write", always), [], 6),
}


@pytest.mark.parametrize("where", INTERRUPTIONS)
def test_an_interrupted_fit_ends_as_one_that_was_not(where, tmp_path, capsys, monkeypatch, fits, uninterrupted):
    stage, what, more, step = INTERRUPTIONS[where]
    out = tmp_path / stage
    with monkeypatch.context() as patch:
        interrupt(patch, *what)
        with pytest.raises(RuntimeError, match="interrupted"):
            fits[stage](out, *more)
    last = out / "checkpoints" / "last.ckpt"
    assert last.exists() == (out / "config.yaml").exists() == (step is not None)
    if step is not None:
        assert torch.load(last, weights_only=True)["global_step"] == step
    assert fits[stage](out, *more) == 0
    assert ("resuming from" in capsys.readouterr().err) == (step is not None and where != "after freezing")
    # config.yaml names the folder; of an epoch that was resumed within, the row has the means of the later steps
    means = ["metrics.csv: train/loss", "metrics.csv: train/agreement"] if where == "within an epoch" else []
    assert differences(uninterrupted / stage, out) == ["config.yaml differs", *(f"{each} differs" for each in means)]
    assert curves_of(out)["val/acc"] == curves_of(uninterrupted / stage)["val/acc"]


def test_where_the_last_checkpoint_is_damaged_a_fit_resumes_from_the_one_before(
    tmp_path, capsys, monkeypatch, fits, uninterrupted
):
    out = tmp_path / "student"
    with monkeypatch.context() as patch:
        interrupt(patch, *at_step(6))
        with pytest.raises(RuntimeError, match="interrupted"):
            fits["student"](out)
    last, previous = (out / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    last.write_bytes(last.read_bytes()[:1000])
    # the newer time of a clock that was set back counts for nothing
    assert fits["student"](out) == 0
    err = capsys.readouterr().err
    assert f"warning: checkpoint {last} is damaged" in err
    assert f"resuming from {previous}" in err
    # a later start with this config must not resume from that checkpoint
    assert "\nckpt_path: null\n" in (out / "config.yaml").read_text()
    assert differences(uninterrupted / "student", out) == ["config.yaml differs"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fit_interrupted_within_an_epoch_resumes_with_the_next_batch(workers, tmp_path, monkeypatch, teacher_run):
    options = ["--trainer.limit_train_batches=1.0", f"--data.init_args.num_workers={workers}", "--checkpoint_every=3"]
    assert fit_student(tmp_path / "whole", teacher_run, *options) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, *at_step(18))
        with pytest.raises(RuntimeError, match="interrupted"):
            fit_student(tmp_path / "out", teacher_run, *options)
    last = torch.load(tmp_path / "out/checkpoints/last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (1, 15), "700 images in batches of 64 are 10 steps an epoch"
    assert fit_student(tmp_path / "out", teacher_run, *options) == 0
    weights = "classifier/model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_settings_are_compared_once_the_folder_is_locked(tmp_path, teacher_run, capsys, monkeypatch):
    """A run of other settings may appear while a start waits for the lock."""
    out = tmp_path / "out"
    original = RunLock.__init__

    def wait(self, folder):
        shutil.copytree(teacher_run, folder)
        for name in ("class_vectors.safetensors", "prompts.safetensors"):
            (folder / name).unlink()
        original(self, folder)

    monkeypatch.setattr(RunLock, "__init__", wait)
    assert fit_teacher(out, *AVERAGING, "--model.init_args.optim.lr=0.5") == 1
    error_line(capsys, "holds a run with other settings (model.init_args.optim.lr is")


def test_a_second_fit_into_a_folder_is_refused_while_the_first_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("kdpl.runtime.lock._PATIENCE_SECONDS", 0)
    first = RunLock(tmp_path / "out")
    assert fit_teacher(tmp_path / "out") == 1
    error_line(capsys, f"another process is running into {tmp_path / 'out'}", "choose another --out")
    first.release()
    assert fit_teacher(tmp_path / "out", "--trainer.max_epochs=1") == 0


def test_the_config_of_a_copied_run_does_not_lead_back_to_the_original(teacher_run, tmp_path, capsys):
    copy = shutil.copytree(teacher_run, tmp_path / "copy")
    before = files_of(teacher_run)
    for command in ("test", "validate", "fit"):
        assert main([command, f"--config={copy}/config.yaml"]) == 1
        error_line(capsys, f"{copy}/config.yaml is the config of a run in {teacher_run}", f"give --out {copy}")
    assert main(["test", f"--config={copy}/config.yaml", f"--out={copy}"]) == 0
    assert files_of(teacher_run) == before
    assert f"using {copy}/checkpoints/last.ckpt" in capsys.readouterr().err


def test_a_finished_fit_says_so_and_touches_nothing(teacher_run, student_run, capsys):
    for run in (teacher_run, student_run):
        before = files_of(run)
        assert main(["fit", f"--config={run}/config.yaml"]) == 0
        assert f"{run} is finished: nothing to do" in capsys.readouterr().err
        assert files_of(run) == before


def test_the_config_in_the_folder_makes_the_run_again_and_another_seed_another_one(teacher_run, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    assert main(["fit", f"--config={teacher_run}/config.yaml", f"--out={again}"]) == 0
    assert main(["fit", f"--config={teacher_run}/config.yaml", f"--out={other}", "--seed_everything=2"]) == 0
    for name in ("class_vectors.safetensors", "prompts.safetensors"):
        assert (again / name).read_bytes() == (teacher_run / name).read_bytes()
        assert (other / name).read_bytes() != (teacher_run / name).read_bytes()


def test_a_test_and_a_validation_leave_the_config_and_the_checkpoint_of_the_fit_alone(teacher_run, capsys):
    kept = {k: v for k, v in files_of(teacher_run).items() if k.startswith(("config", "checkpoints", "class", "prom"))}
    results = json.loads((teacher_run / "test.json").read_text())
    left = teacher_run / "figures" / ".confusion.png.x.unfinished"
    left.mkdir()
    assert run_test(teacher_run) == 0
    assert not left.exists(), "what a killed test left is removed by the next one"
    assert f"test/acc {100 * results['test/acc']:.2f} %" in capsys.readouterr().err
    assert main(["validate", f"--config={teacher_run}/config.yaml"]) == 0
    assert "val/acc" in capsys.readouterr().err
    after = files_of(teacher_run)
    assert all(after[name] == content for name, content in kept.items())
    assert json.loads((teacher_run / "test.json").read_text()) == results


def printed(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main([*args, "--print_config"])
    assert stop.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)


def test_print_config_shows_all_of_several_merged_configs(capsys, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text("data: {init_args: {shots: 3}}\n")
    config = printed(capsys, "fit", *DATA, *TEACHER, f"--config={more}", "--trainer.max_epochs=7", "--out=x")
    data = config["data"]["init_args"]
    assert (data["shots"], data["dataset"], data["batch_size"]) == (3, "digits", 16)
    assert config["model"]["init_args"]["clip"]["model"] == "tiny-teacher"
    assert (config["trainer"]["accelerator"], config["trainer"]["max_epochs"], config["out"]) == ("cpu", 7, "x")


def test_the_order_of_configs_counts_only_where_they_overlap(capsys):
    parts = [*configs("data/digits.yaml", "trainer/cpu.yaml", "logger/csv.yaml"), *TEACHER]
    assert printed(capsys, "fit", *parts[::-1]) == printed(capsys, "fit", *parts)
    config = printed(capsys, "fit", *DATA, *TEACHER, *configs("teacher/ivlp.yaml"))
    assert config["model"]["init_args"]["regularizers"] == {"text": 0.0, "image": 0.0, "logits": 0.0}
    assert config["model"]["init_args"]["clip"]["model"] == "tiny-teacher"


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_help_is_short_and_begins_with_the_own_options(command, capsys):
    assert main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: python -m kdpl {command} --config FILE … --out FOLDER")
    assert len(lines) <= 25
    options = [line.split()[0] for line in lines if line.startswith("  --")]
    assert options[:5] == ["--config", "--out", "--seed_everything", "--ckpt_path", "--checkpoint_every"]


def test_the_full_help_lists_the_trainers_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--full_help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for option in ("--out", "--ckpt_path", "--trainer.max_epochs", "--model.help", "--data.help"):
        assert option in out


def test_nothing_of_a_run_lands_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit_teacher("runs/a", "--trainer.max_epochs=1") == 0
    assert run_test("runs/a") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]
    assert not any(math.isnan(v) for v in json.loads(Path("runs/a/test.json").read_text()).values())
