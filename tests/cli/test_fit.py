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
    folder_fit,
    image_folder,
)
from runs import test as run_test
from soak.comparison import differences

from kdpl.__main__ import STAGES, main
from kdpl.callbacks.checkpoints import CheckpointFiles
from kdpl.callbacks.handover import FreezeClassVectors, SaveClassifier
from kdpl.callbacks.progress import Throughput
from kdpl.runtime.lock import RunLock
from kdpl.teacher import TeacherPromptTuning

FIT = ["fit", *DATA, *TEACHER, *SHORT]


def nothing_written(out):
    """Whether a folder has nothing of a run; of images that were checked, a note may stay."""
    kept = ("checked_images.json", ".lock")
    return not [path for path in Path(out).rglob("*") if path.is_file() and path.name not in kept]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {class_path: kdpl.DomainDataModule}", ["kdpl.DomainDataModule"]),
        ("model: {init_args: {regularizer: {text: 1}}}", ["regularizer"]),
        ("model: {init_args: {optim: {learning_rate: 1}}}", ["optim", "learning_rate"]),
        ("trainr: {max_epochs: 1}", ["trainr"]),
        ("trainer: {logger: {class_path: kdpl.runtime.loggers.MetricsCSV, init_args: {dir: x}}}", ["dir"]),
        ("data: {init_args: {shots: many}}", ["shots", "many"]),
        ("model: {init_args: {optim: {optimizer: adam}}}", ["adam"]),
        ("model: {class_path: kdpl.TeacherTuning}", ["kdpl.TeacherTuning"]),
        ("seed_everything: -3", ["seed_everything", "-3"]),
        ("seed_everything: false", ["seed", "False"]),
        ("data: {init_args: {dataset: digit}}", ["'digit'", "digits"]),
        ("model: {init_args: {clip: {model: tiny-techer}}}", ["'tiny-techer'", "tiny-teacher"]),
        ("model: {init_args: {clip: {pretrained: glyph}}}", ["'glyph'", "glyphs"]),
        ("model: {init_args: {clip: {pretrained: gone/w.safetensors}}}", ["gone/w.safetensors"]),
        ("model: {init_args: {vision_prompts: {depth: 9}}}", ["depth 9", "1 to 4"]),
        (
            "model: {init_args: {vision_prompts: {depth: 0}, text_prompts: {depth: 0}}}",
            ["trains nothing", "max_epochs"],
        ),
        ("trainer: {max_epochs: -1}", ["trainer.max_epochs"]),
        ("trainer: {max_time: '00:00:10:00'}", ["trainer.max_time"]),
        ("trainer: {accelerator: tpu}", ["torch_xla", "install"]),
        ("trainer: {devices: 0}", ["devices"]),
        ("model:\n\tx: 1", ["wrong.yaml", "line 2", "not YAML"]),
        ("model", ["wrong.yaml", "no settings"]),
    ],
)
def test_a_wrong_setting_is_named_in_one_line_and_nothing_is_written(text, words, tmp_path, capsys):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text)
    assert main([*FIT, f"--config={wrong}", f"--out={tmp_path / 'out'}"]) == 1
    error_line(capsys, *words)
    assert nothing_written(tmp_path / "out")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["fit"], ["fit", "--config"]),
        (["test"], ["test", "--config"]),
        ([*FIT, "--config", "gone.yaml"], ["gone.yaml", "does not exist"]),
        ([*FIT, f"--config={CONFIGS}"], [str(CONFIGS), "is a folder"]),
        (["fit", *DATA, "--out=out"], ["model"]),
        (["fit", *TEACHER, "--out=out"], ["dataset"]),
        (["fit", *DATA, *STUDENT, "--out=out"], ["teacher"]),
        (FIT, ["--out"]),
        ([*FIT, "--out=out", "--shots=4"], ["--shots"]),
        ([*FIT, "--out=out", "--data.init_args.shot=4"], ["shot"]),
        ([*FIT, "--out=out", "--trainer.max_epoch=4"], ["max_epoch"]),
        (["test", *DATA, *TEACHER, "--ckpt_path=gone.ckpt", "--out=out"], ["gone.ckpt"]),
        (["test", *DATA, *TEACHER, "--out=out"], ["out", "last.ckpt", "--ckpt_path"]),
        (["test", *DATA, *STUDENT, "--model.init_args.teacher=t", "--out=out"], ["t/class_vectors.s"]),
        (["fit", *DATA, *STUDENT, "--model.init_args.teacher=t", "--out=out"], ["t/class_vectors.s"]),
    ],
)
def test_a_wrong_option_is_named_in_one_line_and_nothing_is_written(args, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 1
    error_line(capsys, *words)
    assert nothing_written(tmp_path)


def test_images_that_cannot_be_used_are_named_and_a_corrected_start_is_not_refused(tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "out"
    assert main(folder_fit(root, out)) == 1
    error_line(capsys, str(root), "does not exist")
    image_folder(root, images=3)
    assert main(folder_fit(root, out)) == 1
    error_line(capsys, "'cat'", "3 training images", "shots", "4")
    (root / "train" / "empty").mkdir()
    assert main(folder_fit(root, out)) == 1
    error_line(capsys, "train/empty", "no images")
    (root / "train" / "empty").rmdir()
    broken = root / "train" / "dog" / "2.png"
    intact = broken.read_bytes()
    broken.write_bytes(b"not an image")
    one_batch = "--data.init_args.batch_size=6"
    assert main([*folder_fit(root, out), one_batch, "--data.init_args.shots=3", "--data.init_args.num_workers=1"]) == 1
    error_line(capsys, "train/dog/2.png", "cannot be read")
    assert nothing_written(out)
    broken.write_bytes(intact)
    assert main([*folder_fit(root, out), "--data.init_args.shots=2"]) == 0


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


@pytest.mark.parametrize(("command", "size"), [("fit", 5000), ("fit", None), ("test", 0)])
def test_a_truncated_foreign_or_empty_checkpoint_is_named(command, size, teacher_run, tmp_path, capsys):
    file = tmp_path / "out" / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    if size is None:
        torch.save({"weights": torch.zeros(3)}, file)
    else:
        file.write_bytes((teacher_run / "checkpoints" / "last.ckpt").read_bytes()[:size])
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
    return Throughput, "on_train_batch_end", lambda _, trainer, *__: trainer.global_step == step


def always(*_):
    return True


def at_validation(module):
    return module.trainer.current_epoch == 1 and not module.trainer.sanity_checking


def after_an_epoch(_, checkpoint, *__):
    return checkpoint["epoch"] == 1


# stage, where it is interrupted, more options, and the step of the last checkpoint
INTERRUPTIONS = {
    "first epoch of a teacher": ("teacher", at_end_of(2), [], None),
    "last epoch of a teacher": ("teacher", at_end_of(6), [], 4),
    "last epoch of a student": ("student", at_end_of(6), [], 4),
    "within an epoch": ("student", at_end_of(4), ["--checkpoint_every=1"], 3),
    "ahead of workers": ("student", at_end_of(4), ["--checkpoint_every=1", "--data.init_args.num_workers=2"], 3),
    # a checkpoint of an epoch's last step would be resumed without the validation of this epoch
    "validation": ("teacher", (TeacherPromptTuning, "on_validation_start", at_validation), ["--checkpoint_every=2"], 2),
    "right after a checkpoint": ("teacher", (CheckpointFiles, "save_checkpoint", after_an_epoch, True), [], 4),
    "freezing": ("teacher", (FreezeClassVectors, "write", always), [], 6),
    "after freezing": ("teacher", (FreezeClassVectors, "write", always, True), [], 6),
    "writing the classifier": ("student", (SaveClassifier, "write", always), [], 6),
}


@pytest.mark.parametrize("where", INTERRUPTIONS)
def test_an_interrupted_fit_ends_as_one_that_was_not(where, tmp_path, capsys, fits, uninterrupted):
    stage, what, more, step = INTERRUPTIONS[where]
    out = tmp_path / stage
    interrupted(lambda: fits[stage](out, *more), *what)
    last = out / "checkpoints" / "last.ckpt"
    assert last.exists() == (out / "config.yaml").exists() == (step is not None)
    if step is not None:
        assert torch.load(last, weights_only=True)["global_step"] == step
    assert fits[stage](out, *more) == 0
    assert ("resuming from" in capsys.readouterr().err) == (step is not None and where != "after freezing")
    # config.yaml names the folder; of an epoch that was resumed within, the row has the means of the later steps
    means = ["metrics.csv: train/loss", "metrics.csv: train/agreement"] if step == 3 else []
    assert differences(uninterrupted / stage, out) == ["config.yaml differs", *(f"{each} differs" for each in means)]
    assert curves_of(out)["val/acc"] == curves_of(uninterrupted / stage)["val/acc"]


def test_where_the_last_checkpoint_is_damaged_a_fit_resumes_from_the_one_before(tmp_path, capsys, fits, uninterrupted):
    out = tmp_path / "student"
    interrupted(lambda: fits["student"](out), *at_end_of(6))
    last, previous = (out / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    last.write_bytes(last.read_bytes()[:1000])
    assert fits["student"](out) == 0
    err = capsys.readouterr().err
    assert f"warning: checkpoint {last} is damaged" in err
    assert f"resuming from {previous}" in err
    # a later start with this config must not resume from that checkpoint
    assert "\nckpt_path: null\n" in (out / "config.yaml").read_text()
    assert differences(uninterrupted / "student", out) == ["config.yaml differs"]


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
        main(["fit", *args, "--print_config"])
    assert stop.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)


def test_configs_are_merged_and_their_order_counts_only_where_they_overlap(capsys, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text("data: {init_args: {shots: 3}}\n")
    config = printed(capsys, *DATA, *TEACHER, f"--config={more}", "--trainer.max_epochs=7", "--out=x")
    data = config["data"]["init_args"]
    assert (data["shots"], data["dataset"], data["batch_size"]) == (3, "digits", 16)
    assert config["model"]["init_args"]["clip"]["model"] == "tiny-teacher"
    assert (config["trainer"]["accelerator"], config["trainer"]["max_epochs"], config["out"]) == ("cpu", 7, "x")
    parts = [*DATA, *configs("logger/csv.yaml"), *TEACHER]
    assert printed(capsys, *parts[::-1]) == printed(capsys, *parts)
    config = printed(capsys, *DATA, *TEACHER, *configs("teacher/ivlp.yaml"))
    assert config["model"]["init_args"]["regularizers"] == {"text": 0.0, "image": 0.0, "logits": 0.0}
    assert config["model"]["init_args"]["clip"]["model"] == "tiny-teacher"


def test_help_is_short_and_the_full_help_lists_the_trainers_options(capsys):
    for command in STAGES:
        assert main([command, "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(f"usage: python -m kdpl {command} --config FILE … --out FOLDER")
        assert len(lines) <= 25
        options = [line.split()[0] for line in lines if line.startswith("  --")]
        assert options[:5] == ["--config", "--out", "--seed_everything", "--ckpt_path", "--checkpoint_every"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--full_help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--out", "--trainer.max_epochs", "--model.help", "--data.help"))


def test_nothing_of_a_run_lands_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit_teacher("runs/a", "--trainer.max_epochs=1") == 0
    assert run_test("runs/a") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]
    assert not any(math.isnan(v) for v in json.loads(Path("runs/a/test.json").read_text()).values())
