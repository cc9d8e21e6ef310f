import tempfile

import pytest

from kdpl.data.shards import spool


@pytest.fixture(autouse=True)
def _empty_folders(tmp_path, monkeypatch):
    """Indexes and pieces of shards are kept in folders that are empty at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spool._fetched.cache_clear()
    # a short path: workers open sockets in there, whose paths have at most 107 bytes
    with tempfile.TemporaryDirectory() as temporary:
        monkeypatch.setattr(tempfile, "tempdir", temporary)
        yield
