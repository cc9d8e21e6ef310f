import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import world
import yaml
from runs import DATA, SHORT, TEACHER, at_step, fit_teacher
from safetensors.torch import load_file

from kdpl.callbacks.checkpoints import CheckpointFiles, SameSteps, newest, require_intact
from kdpl.callbacks.run_config import RunConfig
from kdpl.errors import ArtifactError, ConfigError
from kdpl.runtime.run_folder import (
    CHECKPOINTS_FOLDER,
    CLASS_VECTORS_FILE,
    CONFIG_FILE,
    LAST,
    PREVIOUS,
    PROMPTS_FILE,
)

# five steps an epoch, and a checkpoint after each
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


@pytest.mark.parametrize("links", [True, False])
def test_the_one_before_is_kept_and_there_is_a_last_at_any_moment(links, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    save(tmp_path, 0)
    there, replace = [], Path.replace
    monkeypatch.setattr(
        Path,
        "replace",
        lambda *args: (there.append((tmp_path / LAST).is_file()), replace(*args))[1],
    )
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    save(tmp_path, 1, 2)
    # a file system without hard links needs two renames
    assert all(there) == links
    assert epochs_in(tmp_path) == {"last": 2, "previous": 1}
    assert newest(tmp_path) == tmp_path / LAST


def test_a_disk_that_fills_up_leaves_the_ones_before(tmp_path, monkeypatch):
    def full(content, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    save(tmp_path, 0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 2)
    assert epochs_in(tmp_path) == {"last": 1, "previous": 0}


def test_a_damaged_one_is_named_and_the_one_before_is_taken(tmp_path, capsys):
    assert newest(tmp_path) is None
    save(tmp_path, 0, 1)
    (tmp_path / LAST).write_bytes(b"")
    assert newest(tmp_path) == tmp_path / PREVIOUS
    said = capsys.readouterr().err
    assert f"warning: checkpoint {tmp_path / LAST} is damaged" in said
    assert f"resuming from the one before it, {tmp_path / PREVIOUS}" in said
    # as after a kill between the two renames
    (tmp_path / LAST).unlink()
    assert newest(tmp_path) == tmp_path / PREVIOUS
    (tmp_path / PREVIOUS).write_bytes(b"PK")
    with world.refused(ArtifactError, r"previous\.ckpt is damaged"):
        newest(tmp_path)


def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path):
    with world.refused(ConfigError, "does not exist"):
        require_intact(tmp_path / "x.ckpt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "x.ckpt")
    with world.refused(ArtifactError, "is not a run's checkpoint"):
        require_intact(tmp_path / "x.ckpt")


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


def test_a_fit_that_would_resume_with_other_steps_is_refused(interrupted, capsys):
    before = (interrupted / CONFIG_FILE).read_bytes()
    assert fit_teacher(interrupted, *STEPS, "--data.init_args.batch_size=8") == 1
    line = "error: the run took 16 images a step, and would take 8 now: set data.init_args.batch_size to 16"
    assert line in capsys.readouterr().err
    assert (interrupted / CONFIG_FILE).read_bytes() == before
    assert fit_teacher(interrupted, *STEPS) == 0


@pytest.mark.parametrize(
    ("processes", "words"),
    [
        (2, r"take 32 \(16 on each of 2 processes\) now: set data\.init_args\.batch_size to 8$"),
        (3, r"take 48 \(16 on each of 3 processes\) now: set trainer\.devices to a divisor of 16$"),
    ],
)
def test_on_several_processes_the_images_of_each_are_named(processes, words):
    callback = SameSteps()
    trainer = SimpleNamespace(datamodule=world.digits(16), world_size=processes)
    callback.setup(trainer, None, "fit")
    callback.load_state_dict({"images_per_step": 16 * processes})
    with world.refused(ConfigError, words):
        callback.load_state_dict({"images_per_step": 16})


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


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_failure_removes_the_config_if_nothing_can_be_resumed(tmp_path, checkpoint):
    (tmp_path / CONFIG_FILE).write_text("seed_everything: 1")
    if checkpoint:
        (tmp_path / CHECKPOINTS_FOLDER).mkdir()
        (tmp_path / LAST).touch()
    callback = RunConfig(parser=None, config=None)
    callback.already_saved = True
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), is_global_zero=True)
    callback.on_exception(trainer, None, RuntimeError())
    assert (tmp_path / CONFIG_FILE).exists() == checkpoint
