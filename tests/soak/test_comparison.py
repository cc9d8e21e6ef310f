import shutil

import pytest
import torch
from soak.comparison import differences

MODEL, LAST = "classifier/model.safetensors", "checkpoints/last.ckpt"


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("test.json", b"", b"", []),
        (MODEL, b"\x00\x00", b"\x00\x01", [f"{MODEL} differs"]),
        ("metrics.csv", b",,,0,0.", b",,,0,1.", ["metrics.csv: val/acc differs"]),
        ("test.json", None, None, ["test.json is missing"]),
        ("classifier/.model.tmp", None, b"", ["classifier/.model.tmp was left behind"]),
        (LAST, None, "another weight", [f"{LAST}: state_dict differs"]),
    ],
)
def test_every_difference_is_reported(name, old, new, said, student_run, tmp_path):
    copy = shutil.copytree(student_run, tmp_path / "copy")
    file = copy / name
    if new == "another weight":
        checkpoint = torch.load(file, weights_only=True)
        weights = checkpoint["state_dict"].values()
        next(tensor for tensor in weights if tensor.is_floating_point()).view(-1)[0] += 1e-6
        torch.save(checkpoint, file)
    elif old is not None:
        assert old in file.read_bytes()
        file.write_bytes(file.read_bytes().replace(old, new, 1))
    elif new is None:
        file.unlink()
    else:
        file.write_bytes(new)
    assert differences(student_run, copy) == said
