import importlib
import os
import pickle
import re
import sys
from collections import OrderedDict
from contextlib import suppress

import published_files as files
import pytest
import torch
import world

from kdpl.clip.torch_files import openai_digests, read_openai_archive, read_torch_file
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
        pytest.param(lambda _: None, "f does not exist", id="missing"),
        pytest.param(lambda path: os.truncate(files.write(path, {}), 700), DAMAGED, id="truncated"),
        pytest.param(lambda path: torch.save({}, path, _use_new_zipfile_serialization=False), DAMAGED, id="before 1.6"),
        pytest.param(lambda path: path.write_bytes(pickle.dumps(OrderedDict(a=1))), DAMAGED, id="pickle"),
        pytest.param(lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)), DAMAGED, id="empty zip"),
        pytest.param(torch.jit.script(torch.nn.Linear(2, 2)).save, "is a TorchScript archive, expected a", id="script"),
    ],
)
def test_another_or_a_damaged_file_is_refused(write, match, tmp_path):
    write(tmp_path / "f")
    with world.refused(ArtifactError, match):
        read_torch_file(tmp_path / "f")


class CreatesAFile(torch.nn.Module):
    """Its code runs as the archive is loaded, and creates a file of this name."""

    def __init__(self, path):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.path = str(path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, str, bool]:
        return self.weight, self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]) -> None:
        self.weight = torch.from_file(state[1], shared=True, size=4)
        self.path, self.training = state[1], state[2]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:`torch.jit.*` is deprecated")
class TestOpenAiArchives:
    def test_the_code_of_another_archive_does_not_run(self, tmp_path):
        trace, file = tmp_path / "trace", tmp_path / "f"
        torch.jit.script(CreatesAFile(trace)).save(file)
        torch.jit.load(file)
        assert trace.exists(), "the file was harmless: this test shows nothing"
        trace.unlink()
        with world.refused(ArtifactError, "whose code would run, and not one of OpenAI's: save its"):
            read_openai_archive(file)
        assert not trace.exists()

    def test_digests_are_those_of_openais_nine_models(self):
        digests = openai_digests()
        assert len(digests) == 9
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
        assert "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af" in digests
