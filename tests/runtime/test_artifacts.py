import os
from pathlib import Path

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


def test_tensors_and_fields_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "folder" / "a.safetensors"
    write(path)
    tensors, fields = read(path)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[k], v) for k, v in TENSORS.items())
    assert fields == FIELDS
    parameter = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    write_tensors(path, "apples", 3, {"t": parameter.T}, {})
    assert torch.equal(read(path)[0]["t"], parameter.T)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (Path.exists, "does not exist, where apples were expected: plant a tree"),
        (lambda path: (write(path), os.truncate(path, 40)), r"is damaged \(.+\): plant a tree"),
        (lambda path: save_file(TENSORS, path, metadata={"kdpl": "{"}), "is damaged"),
        (lambda path: write(path, kind="pears"), "does not hold apples: plant a tree"),
        (lambda path: save_file(TENSORS, path), "does not hold apples"),
        (lambda path: write(path, version=2), "has format version 2, this kdpl reads 3"),
        (lambda path: write(path, version="3"), "has format version 3, this kdpl reads 3"),
    ],
)
def test_another_or_a_damaged_file_is_one_sentence_that_names_it(make, match, tmp_path):
    path = tmp_path / "a.safetensors"
    make(path)
    with world.refused(ArtifactError, match) as error:
        read(path)
    assert str(path) in str(error.value)
