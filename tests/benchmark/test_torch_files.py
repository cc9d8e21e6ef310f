import importlib
import os
import sys
from contextlib import suppress

import published_files as files
import pytest
import torch
import world

from kdpl.benchmark.checkpoints import read_torch_file
from kdpl.errors import ArtifactError


class TestNothingRuns:
    @pytest.mark.parametrize("place", ["state_dict", "scheduler"])
    @pytest.mark.parametrize("function", [os.system, exec])
    def test_a_call_that_plain_loading_makes_is_not_made(self, place, function, tmp_path):
        trace, path = tmp_path / "trace", tmp_path / "f"
        code = f"touch {trace}" if function is os.system else f"open({str(trace)!r}, 'w').close()"
        torch.save({"state_dict": {}, "scheduler": None, place: world.Call(function, code)}, path)
        torch.load(path, weights_only=False)
        assert trace.exists(), "the file was harmless: this test shows nothing"
        trace.unlink()
        before = set(torch.serialization.get_safe_globals())
        with suppress(ArtifactError):
            read_torch_file(path)
        assert not trace.exists()
        assert set(torch.serialization.get_safe_globals()) == before

    def test_no_module_is_imported(self, tmp_path, monkeypatch):
        (tmp_path / "stranger.py").write_text("class Thing:\n    pass\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        torch.save({"x": importlib.import_module("stranger").Thing()}, tmp_path / "f")
        monkeypatch.delitem(sys.modules, "stranger")
        read_torch_file(tmp_path / "f")
        assert "stranger" not in sys.modules


DAMAGED = r"is damaged, or not a checkpoint .* since version 1\.6.*: fetch"


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")
@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda _: None, "f does not exist"),
        (lambda path: os.truncate(files.write(path, {}), 700), DAMAGED),
        (lambda path: torch.save({}, path, _use_new_zipfile_serialization=False), DAMAGED),
        (lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)), DAMAGED),
        (torch.jit.script(torch.nn.Linear(2, 2)).save, DAMAGED),
    ],
    ids=["missing", "truncated", "before 1.6", "empty zip", "script"],
)
def test_another_or_a_damaged_file_is_refused(write, match, tmp_path):
    write(tmp_path / "f")
    with world.refused(ArtifactError, match):
        read_torch_file(tmp_path / "f")
