import pytest

from kdpl.runtime import lock
from kdpl.runtime.lock import RunLock


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE_SECONDS", 0)
    monkeypatch.setattr(lock, "_LEASE_SECONDS", 0)


def test_a_folder_into_which_nothing_was_written_is_removed(tmp_path):
    RunLock(tmp_path / "empty").release()
    assert not (tmp_path / "empty").exists()
    kept = RunLock(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").touch()
    kept.release()
    assert (tmp_path / "run" / "config.yaml").exists()


def test_what_a_killed_process_left_is_removed_but_not_that_of_a_run_within(tmp_path):
    mine, theirs = tmp_path / ".model.x.unfinished", tmp_path / "student" / ".model.y.unfinished"
    for folder in (mine, theirs):
        folder.mkdir(parents=True)
    (tmp_path / "student" / lock.LOCK_FILE).touch()
    RunLock(tmp_path)
    assert not mine.exists()
    assert theirs.exists()
