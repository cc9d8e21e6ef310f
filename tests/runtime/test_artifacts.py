import pytest
import torch
import world
from safetensors.torch import save_file

from kdpl.errors import ArtifactError
from kdpl.runtime.artifacts import read_tensors, write_tensors

TENSORS = {"numbers": torch.tensor([1.0, 2.0]), "none": torch.zeros(0, 3)}
FIELDS = {"name": "Zürich", "list": [1, None, "x"], "nested": {"a": 1.5}}


def write(path, kind="apples", version=3):
    write_tensors(path, kind, version, TENSORS, FIELDS)


def read(path):
    return read_tensors(path, "apples", 3, "plant a tree")


def refused(path, match):
    with pytest.raises(ArtifactError, match=match) as error:
        read(path)
    assert world.one_sentence(error)
    assert str(path) in str(error.value)


def test_tensors_and_fields_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "folder" / "a.safetensors"
    write(path)
    tensors, fields = read(path)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[k], v) for k, v in TENSORS.items())
    assert fields == FIELDS


def test_tensors_that_are_not_contiguous_or_need_gradients_are_written_too(tmp_path):
    parameter = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    write_tensors(tmp_path / "a.safetensors", "apples", 3, {"t": parameter.T}, {})
    assert torch.equal(read(tmp_path / "a.safetensors")[0]["t"], parameter.T)


class TestRefusals:
    def test_a_missing_file(self, tmp_path):
        refused(tmp_path / "a.safetensors", "does not exist, where apples were expected: plant a tree")

    def test_a_folder(self, tmp_path):
        refused(tmp_path, "does not exist, where apples were expected")

    @pytest.mark.parametrize("length", [0, 4, 40, -1])
    def test_a_truncated_file(self, length, tmp_path):
        path = tmp_path / "a.safetensors"
        write(path)
        path.write_bytes(path.read_bytes()[:length])
        refused(path, r"is damaged \(.+\): plant a tree")

    def test_a_file_of_noise(self, tmp_path):
        path = tmp_path / "a.safetensors"
        path.write_bytes(bytes(range(256)) * 8)
        refused(path, "is damaged")

    def test_a_header_that_is_not_json(self, tmp_path):
        path = tmp_path / "a.safetensors"
        save_file(TENSORS, path, metadata={"kdpl": "{"})
        refused(path, "is damaged")

    @pytest.mark.parametrize("metadata", [None, {"kdpl": "{}"}, {"kdpl": "[]"}, {"other": "x"}])
    def test_a_safetensors_file_of_something_else(self, metadata, tmp_path):
        path = tmp_path / "a.safetensors"
        save_file(TENSORS, path, metadata=metadata)
        refused(path, "does not hold apples: plant a tree")

    def test_another_kind(self, tmp_path):
        write(tmp_path / "a.safetensors", kind="pears")
        refused(tmp_path / "a.safetensors", "does not hold apples")

    @pytest.mark.parametrize("version", [2, 4, "3"])
    def test_another_version(self, version, tmp_path):
        write(tmp_path / "a.safetensors", version=version)
        refused(tmp_path / "a.safetensors", f"has format version {version}, this kdpl reads version 3")
