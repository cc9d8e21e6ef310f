import shutil

import pytest
import torch
from soak.invariants import differences, grown, miscounted


@pytest.fixture
def copy(student_run, tmp_path):
    shutil.copytree(student_run, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_copy_of_a_run_does_not_differ(student_run, copy):
    assert differences(student_run, copy, 899) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("test.json", b"899", b"898", "test.json differs"),
        ("classifier/model.safetensors", b"\x00\x00", b"\x00\x01", "classifier/model.safetensors differs"),
        ("metrics.csv", b"\n0,", b"\n1,", "metrics.csv: "),
        ("test_predictions.csv", b"\n7,", b"\n8,", "1 images lost, 1 doubled"),
        ("test_predictions.csv", b"\n7,", b"\n1000,", "1 images lost, 0 doubled"),
    ],
)
def test_whatever_else_stands_in_a_file_is_said(name, old, new, said, student_run, copy):
    content = (copy / name).read_bytes()
    assert old in content
    (copy / name).write_bytes(content.replace(old, new, 1))
    assert any(said in each for each in differences(student_run, copy, 899))


def test_a_file_too_many_or_too_few_is_said(student_run, copy):
    (copy / "classifier" / ".model.tmp").touch()
    (copy / "test.json").unlink()
    assert differences(student_run, copy, 899) == [
        "test.json is missing",
        "classifier/.model.tmp was left behind",
    ]


def test_another_weight_or_momentum_in_a_checkpoint_is_said(student_run, copy):
    path = copy / "checkpoints" / "last.ckpt"
    for part in ("state_dict", "optimizer_states"):
        checkpoint = torch.load(path, weights_only=True)
        states = checkpoint[part] if part == "state_dict" else checkpoint[part][0]["state"][0]
        states[next(key for key, value in states.items() if value.ndim)] += 1e-6
        torch.save(checkpoint, path)
        assert f"checkpoints/last.ckpt: {part} differs" in differences(student_run, copy, 899)


def test_rows_in_another_order_are_said(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("path\nb\na\n")
    assert miscounted(table, "path", ["b", "a"]) == []
    assert miscounted(table, "path", ["a", "b"]) == ["rows in another order"]


def test_memory_that_goes_on_growing_is_said():
    steady = [100.0, 400.0] + [500.0 + i % 3 for i in range(40)]
    assert grown(steady) == []
    assert grown([400 + 10.0 * i for i in range(40)]) == ["memory grew from 650 to 750 MB"]
