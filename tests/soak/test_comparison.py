import shutil

import pytest
import torch
from soak.comparison import differences


@pytest.fixture
def copy(student_run, tmp_path):
    return shutil.copytree(student_run, tmp_path / "copy")


def test_a_copy_of_a_run_does_not_differ(student_run, copy):
    assert differences(student_run, copy) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("test.json", b"899", b"898", "test.json differs"),
        ("classifier/model.safetensors", b"\x00\x00", b"\x00\x01", "classifier/model.safetensors differs"),
        ("metrics.csv", b"\n0,", b"\n1,", "metrics.csv: "),
    ],
)
def test_other_content_of_a_file_is_reported(name, old, new, said, student_run, copy):
    content = (copy / name).read_bytes()
    assert old in content
    (copy / name).write_bytes(content.replace(old, new, 1))
    assert any(said in each for each in differences(student_run, copy))


def test_missing_and_additional_files_are_reported(student_run, copy):
    (copy / "classifier" / ".model.tmp").touch()
    (copy / "test.json").unlink()
    assert differences(student_run, copy) == ["test.json is missing", "classifier/.model.tmp was left behind"]


def test_another_weight_in_a_checkpoint_is_reported(student_run, copy):
    file = copy / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    next(value for value in checkpoint["state_dict"].values() if value.is_floating_point()).view(-1)[0] += 1e-6
    torch.save(checkpoint, file)
    assert differences(student_run, copy) == ["checkpoints/last.ckpt: state_dict differs"]
