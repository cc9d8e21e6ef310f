import pytest

from kdpl.runtime import lock
from kdpl.runtime.lock import locked


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE_SECONDS", 0)
    monkeypatch.setattr(lock, "_LEASE_SECONDS", 0)


def test_a_folder_into_which_nothing_was_written_is_removed(tmp_path):
    with locked(tmp_path / "empty"):
        assert (tmp_path / "empty").exists()
    assert not (tmp_path / "empty").exists()
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "config.yaml").touch()
    assert (tmp_path / "run" / "config.yaml").exists()


def test_what_a_killed_process_left_is_removed_but_not_that_of_a_run_within(tmp_path):
    mine, theirs = tmp_path / ".model.x.unfinished", tmp_path / "student" / ".model.y.unfinished"
    for folder in (mine, theirs):
        folder.mkdir(parents=True)
    (tmp_path / "student" / lock.LOCK_FILE).touch()
    with locked(tmp_path):
        assert not mine.exists()
        assert theirs.exists()
