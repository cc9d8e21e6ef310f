import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import world
import yaml
from runs import (
    DATA,
    SHORT,
    TEACHER,
    at_step,
    curves_of,
    error_line,
    fit_teacher,
    folder_fit,
    image_folder,
)
from safetensors.torch import load_file
from world import Distilled

from kdpl.__main__ import main
from kdpl.callbacks.checkpoints import CheckpointFiles, require_intact
from kdpl.data.augmentation import LightAffine
from kdpl.data.needs import Needs
from kdpl.data.splits import Record
from kdpl.errors import ArtifactError, ConfigError
from kdpl.module import ORIGIN_KEY
from kdpl.runtime.origin import difference
from kdpl.runtime.resizing import Resizing
from kdpl.runtime.run_folder import (
    CHECKPOINTS_FOLDER,
    CLASS_VECTORS_FILE,
    CONFIG_FILE,
    LAST,
    METRICS_FILE,
    PROMPTS_FILE,
)

# five steps an epoch, and a checkpoint after each
ONE_STEP = {"save": True, "limit_train_batches": 1}
STEPS = ["--trainer.limit_train_batches=5", "--checkpoint_every=1"]


def checkpoint(epoch):
    return {
        "epoch": epoch,
        "state_dict": {"w": torch.full((100,), float(epoch))},
        "pytorch-lightning_version": "2",
    }


def save(folder, *epochs):
    for epoch in epochs:
        CheckpointFiles().save_checkpoint(checkpoint(epoch), str(folder / LAST))


def epochs_in(folder):
    """The epoch of each checkpoint, by name."""
    files = (folder / CHECKPOINTS_FOLDER).iterdir()
    return {file.stem: torch.load(file, weights_only=True)["epoch"] for file in files}


def test_a_disk_that_fills_up_leaves_the_one_before(tmp_path, monkeypatch):
    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    save(tmp_path, 0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 2)
    assert epochs_in(tmp_path) == {"last": 1}


def test_a_missing_damaged_or_foreign_one_is_named(tmp_path):
    file = tmp_path / "x.ckpt"
    with world.refused(ConfigError, "does not exist"):
        require_intact(file)
    file.write_bytes(b"PK")
    with world.refused(ArtifactError, r"x\.ckpt is damaged"):
        require_intact(file)
    for foreign in ({"weights": torch.zeros(2)}, torch.zeros(2)):
        torch.save(foreign, file)
        with world.refused(ArtifactError, "is not a run's checkpoint: give one written by fit"):
            require_intact(file)


def test_checkpoints_can_be_left_out(tmp_path):
    assert (
        fit_teacher(
            tmp_path / "out", "--trainer.max_epochs=1", "--trainer.enable_checkpointing=false"
        )
        == 0
    )
    assert not (tmp_path / "out" / CHECKPOINTS_FOLDER).exists()
    assert (tmp_path / "out" / CONFIG_FILE).is_file()
    assert (tmp_path / "out" / CLASS_VECTORS_FILE).is_file()


@pytest.fixture
def interrupted(tmp_path):
    """A teacher that was interrupted in its second epoch, on one process with 16 images a step."""

    def fail():
        raise RuntimeError("interrupted")

    with at_step(8, fail), pytest.raises(RuntimeError, match="interrupted"):
        fit_teacher(tmp_path / "interrupted", *STEPS)
    return tmp_path / "interrupted"


def test_no_checkpoint_is_saved_between_accumulated_batches(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("interrupted")

    save, done = CheckpointFiles.save_checkpoint, []

    def note(self, checkpoint, path, **options):
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done.append(progress["current"]["ready"])
        save(self, checkpoint, path, **options)

    monkeypatch.setattr(CheckpointFiles, "save_checkpoint", note)
    two = [*STEPS, "--trainer.accumulate_grad_batches=2"]
    # of five batches, the steps are after the second, the fourth and the last
    with at_step(2, fail), pytest.raises(RuntimeError, match="interrupted"):
        fit_teacher(tmp_path / "out", *two)
    assert fit_teacher(tmp_path / "out", *two) == 0
    assert done == [2, 4, 5, 2, 4, 5]


def test_a_fit_that_would_resume_with_other_steps_is_refused(interrupted, capsys):
    before = (interrupted / CONFIG_FILE).read_bytes()
    assert fit_teacher(interrupted, *STEPS, "--data.init_args.batch_size=8") == 1
    line = "(images a step is 16 there and 8 here): set data.init_args.batch_size times the number of processes"
    assert line in capsys.readouterr().err
    assert (interrupted / CONFIG_FILE).read_bytes() == before
    assert fit_teacher(interrupted, *STEPS) == 0


def test_a_fit_that_would_resume_with_other_images_is_refused(tmp_path, capsys):
    def fail():
        raise RuntimeError("interrupted")

    command = folder_fit(image_folder(tmp_path / "data"), tmp_path / "out")
    with at_step(3, fail), pytest.raises(RuntimeError, match="interrupted"):
        main(command)
    image = tmp_path / "data" / "train" / "cat" / "0.png"
    image.rename(image.with_stem("new"))
    assert main(command) == 1
    error_line(capsys, "the run's checkpoint was made from something else (images is ", "put back")
    image.with_stem("new").rename(image)
    assert main(command) == 0


def origin_of(split="labeled", world_size=1, labels=None, **options):
    domain = world.digits(16, **options)
    module = SimpleNamespace(needs=Needs(split, Resizing(32)))
    domain.trainer = SimpleNamespace(max_epochs=1, world_size=world_size, lightning_module=module)
    if labels is not None:
        domain.labels = SimpleNamespace(training=lambda: labels, splits=domain.splits)
    return domain.origin(prepared=split == "unlabeled")


RELABELLED = [[Record("a.png", label), Record("b.png", 1)] for label in (0, 1)]


@pytest.mark.parametrize(
    ("before", "now", "name"),
    [
        ({}, {"world_size": 2}, "images a step"),
        ({}, {"shots": 4}, "images"),
        ({"labels": RELABELLED[0]}, {"labels": RELABELLED[1]}, "labels"),
        ({}, {"augmentation": "none"}, "augmentation.class"),
        ({}, {"augmentation": LightAffine(degrees=1)}, "augmentation.degrees"),
        ({}, {"seed": 2}, "seed"),
        ({}, {"split": "unlabeled", "unlabeled_share": 0.5}, "images to distil on"),
    ],
)
def test_what_a_fit_is_made_from_names_images_labels_steps_and_views(before, now, name):
    options = {"split": now.get("split", "labeled")}
    assert difference(origin_of(**options, **before), origin_of(**options, **before)) is None
    assert (
        difference(origin_of(**options, **before), origin_of(**options | before | now))[0] == name
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"augmentation": "none"}, "augmentation.class is "),
        ({"seed": 2}, "seed is 1 there and 2 here"),
        ({"unlabeled_share": 0.9}, "images to distil on is "),
    ],
)
def test_a_student_is_not_resumed_on_other_images_or_views(data, words, tmp_path):
    world.write_teacher(tmp_path, class_names=world.DIGITS, num_base=None)
    Distilled(tmp_path, tmp_path, trainer=ONE_STEP)
    with world.refused(
        ConfigError, rf"the run's checkpoint was made from something else \({words}"
    ):
        Distilled(tmp_path, tmp_path, data=data, ckpt_path=tmp_path / "epoch=0.ckpt")


def test_a_student_is_not_resumed_with_other_class_vectors_of_its_teacher(tmp_path):
    vectors, _ = world.write_teacher(tmp_path, class_names=world.DIGITS, num_base=None)
    Distilled(tmp_path, tmp_path, trainer=ONE_STEP)
    vectors.vectors.copy_(vectors.vectors.flip(0))
    vectors.save(tmp_path / CLASS_VECTORS_FILE)
    with world.refused(ConfigError, r"made from something else \(class vectors is \w+ there and"):
        Distilled(tmp_path, tmp_path, ckpt_path=tmp_path / "epoch=0.ckpt")


def test_a_fit_that_starts_over_has_metrics_of_its_own_alone(tmp_path):
    tmp_path.joinpath(METRICS_FILE).write_text("step,train/loss\n999,1.0\n")
    assert fit_teacher(tmp_path, "--trainer.max_epochs=1") == 0
    assert 999 not in [step for step, _ in curves_of(tmp_path)["train/loss"]]


@pytest.mark.slow
def test_a_fit_resumes_with_the_same_images_on_another_number_of_processes(interrupted, tmp_path):
    assert fit_teacher(tmp_path / "whole", *STEPS) == 0
    two = ["--trainer.devices=2", "--data.init_args.batch_size=8"]
    command = [
        sys.executable,
        "-m",
        "kdpl",
        "fit",
        *DATA,
        *TEACHER,
        *SHORT,
        *STEPS,
        f"--out={interrupted}",
        *two,
    ]
    subprocess.run(command, check=True, capture_output=True)
    whole, resumed = (load_file(run / PROMPTS_FILE) for run in (tmp_path / "whole", interrupted))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_the_config_is_complete_with_all_defaults(teacher_run):
    config = yaml.safe_load((teacher_run / CONFIG_FILE).read_text())
    assert config["seed_everything"] == 1
    assert config["out"] == str(teacher_run)
    assert config["model"]["init_args"]["averaging"] == {"mean": 2.0, "std": 1.0}
    assert config["model"]["init_args"]["optim"]["momentum"] == 0.9
    assert config["data"]["init_args"]["shots"] == 16
    assert config["trainer"]["logger"] is not None
    assert config["ckpt_path"] is None


def test_a_checkpoint_that_does_not_name_an_input_is_not_resumed(interrupted, capsys):
    file = interrupted / LAST
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint[ORIGIN_KEY]["images"]
    torch.save(checkpoint, file)
    assert fit_teacher(interrupted, *STEPS) == 1
    assert "(images is None there and " in capsys.readouterr().err
