from pathlib import Path

import pytest
import torch
import world
from kdpl.callbacks.checkpoint_files import CheckpointFiles, newest, remove_previous, require_whole

from kdpl.errors import ArtifactError, ConfigError
from kdpl.runtime.run_folder import LAST, PREVIOUS


def checkpoint(epoch):
    return {"epoch": epoch, "state_dict": {"w": torch.full((100,), float(epoch))}, "pytorch-lightning_version": "2"}


def save(folder, epoch):
    CheckpointFiles().save_checkpoint(checkpoint(epoch), str(folder / LAST))


def epoch_of(file):
    return torch.load(file, weights_only=True)["epoch"]


def test_the_one_before_is_kept_beside_the_last(tmp_path):
    for epoch in range(3):
        save(tmp_path, epoch)
    assert (epoch_of(tmp_path / LAST), epoch_of(tmp_path / PREVIOUS)) == (2, 1)
    assert newest(tmp_path) == tmp_path / LAST
    remove_previous(tmp_path)
    remove_previous(tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["last.ckpt"]


@pytest.mark.parametrize("links", [True, False])
def test_there_is_a_last_at_any_moment_where_the_file_system_has_links(links, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    save(tmp_path, 0)
    there = []
    replace = Path.replace

    def look(self, target):
        there.append((tmp_path / LAST).is_file())
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", look)
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert all(there) == links
    assert (epoch_of(tmp_path / LAST), epoch_of(tmp_path / PREVIOUS)) == (2, 1)


def test_a_checkpoint_of_another_name_replaces_none(tmp_path):
    save(tmp_path, 0)
    CheckpointFiles().save_checkpoint(checkpoint(1), tmp_path / "checkpoints" / "mine.ckpt")
    assert epoch_of(tmp_path / LAST) == 0
    assert not (tmp_path / PREVIOUS).exists()


def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path, monkeypatch):
    save(tmp_path, 0)
    save(tmp_path, 1)

    def full(content, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 2)
    assert (epoch_of(tmp_path / LAST), epoch_of(tmp_path / PREVIOUS)) == (1, 0)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_killed_between_its_two_renames_a_run_has_the_one_before(tmp_path):
    save(tmp_path, 0)
    (tmp_path / LAST).replace(tmp_path / PREVIOUS)
    assert newest(tmp_path) == tmp_path / PREVIOUS


def test_without_checkpoints_there_is_no_newest(tmp_path):
    assert newest(tmp_path) is None


def test_a_damaged_one_is_named_and_the_one_before_taken(tmp_path):
    save(tmp_path, 0)
    save(tmp_path, 1)
    (tmp_path / LAST).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged .*going on from the one before, .*previous\.ckpt"):
        assert newest(tmp_path) == tmp_path / PREVIOUS


def test_where_all_are_damaged_one_is_named(tmp_path):
    save(tmp_path, 0)
    save(tmp_path, 1)
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(ArtifactError, match=r"previous\.ckpt is damaged") as error:
        newest(tmp_path)
    assert world.one_sentence(error)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist") as error:
        require_whole(tmp_path / "x.ckpt")
    assert world.one_sentence(error)
    torch.save({"weights": torch.zeros(2)}, tmp_path / "x.ckpt")
    with pytest.raises(ArtifactError, match="is not a checkpoint of a run") as error:
        require_whole(tmp_path / "x.ckpt")
    assert world.one_sentence(error)
