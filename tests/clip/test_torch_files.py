import re

import pytest
import torch
import world

from kdpl.clip.torch_files import openai_digests, read_openai_archive
from kdpl.errors import ArtifactError


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


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore:`torch.jit.*` is deprecated"
)
class TestOpenAiArchives:
    def test_the_code_of_another_archive_does_not_run(self, tmp_path):
        trace, file = tmp_path / "trace", tmp_path / "f"
        torch.jit.script(CreatesAFile(trace)).save(file)
        torch.jit.load(file)
        assert trace.exists(), "the file was harmless: this test shows nothing"
        trace.unlink()
        with world.refused(
            ArtifactError, "whose code would run, and not one of OpenAI's: save its"
        ):
            read_openai_archive(file)
        assert not trace.exists()

    def test_digests_are_those_of_openais_nine_models(self):
        digests = openai_digests()
        assert len(digests) == 9
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
        assert "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af" in digests
