from pathlib import Path

import pytest
import torch
import world
from runs import fit_teacher

from kdpl.callbacks.checkpoints import CheckpointFiles, newest, require_intact
from kdpl.errors import ArtifactError, ConfigError
from kdpl.runtime.run_folder import CHECKPOINTS_FOLDER, CLASS_VECTORS_FILE, CONFIG_FILE, LAST, PREVIOUS


def checkpoint(epoch):
    return {"epoch": epoch, "state_dict": {"w": torch.full((100,), float(epoch))}, "pytorch-lightning_version": "2"}


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
    monkeypatch.setattr(Path, "replace", lambda *args: (there.append((tmp_path / LAST).is_file()), replace(*args))[1])
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
    assert fit_teacher(tmp_path / "out", "--trainer.max_epochs=1", "--trainer.enable_checkpointing=false") == 0
    assert not (tmp_path / "out" / CHECKPOINTS_FOLDER).exists()
    assert (tmp_path / "out" / CONFIG_FILE).is_file()
    assert (tmp_path / "out" / CLASS_VECTORS_FILE).is_file()
