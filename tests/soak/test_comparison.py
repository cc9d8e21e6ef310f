import shutil

import torch
from soak.comparison import differences


def test_every_difference_is_reported(student_run, tmp_path):
    copy = shutil.copytree(student_run, tmp_path / "copy")
    assert differences(student_run, copy) == []

    (copy / "test.json").unlink()
    (copy / "classifier/.model.tmp").touch()
    for name, old, new in (
        ("classifier/model.safetensors", b"\x00\x00", b"\x00\x01"),
        ("metrics.csv", b",,,0,0.", b",,,0,1."),
    ):
        content = (copy / name).read_bytes()
        assert old in content
        (copy / name).write_bytes(content.replace(old, new, 1))
    last = copy / "checkpoints/last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    weights = checkpoint["state_dict"].values()
    next(tensor for tensor in weights if tensor.is_floating_point()).view(-1)[0] += 1e-6
    torch.save(checkpoint, last)
    assert sorted(differences(student_run, copy)) == [
        "checkpoints/last.ckpt: state_dict differs",
        "classifier/.model.tmp was left behind",
        "classifier/model.safetensors differs",
        "metrics.csv: val/acc differs",
        "test.json is missing",
    ]
