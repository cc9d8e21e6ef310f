"""Commands that torchrun starts on two processes, and stages on different numbers of them."""

import os
import subprocess
import sys

import pytest
from differences import differences
from runs import DATA, SHORT, STAGES, TEACHER, error_line, start_process

from kdpl.__main__ import main

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TORCHRUN += ["-m", "kdpl"]
TWO = "--trainer.devices=2"


def kdpl(*args):
    process = start_process(args, stdout=subprocess.PIPE)
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.mark.slow
def test_torchrun_gives_what_lightnings_launcher_gives(tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    run = ["run", *DATA, *STAGES, *SHORT, TWO, f"--out={out}"]
    code, _, err = kdpl(*run)
    assert code == 0, err
    out.rename(other)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*TORCHRUN, *run], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    # paths in configs are the same
    assert differences(other, out) == []


@pytest.mark.slow
def test_stages_on_different_numbers_of_processes(tmp_path):
    devices = {"teacher": 2, "student": 1}
    for stage, number in devices.items():
        (tmp_path / f"{stage}.yaml").write_text(f"trainer: {{devices: {number}}}")
    changes = [f"--{stage}={tmp_path / stage}.yaml" for stage in devices]
    command = ["run", *DATA, *STAGES, *changes, *SHORT, f"--out={tmp_path / 'out'}"]
    code, _, refused = kdpl(*command)
    assert code == 1
    assert "run the same command again" in refused
    code, resumed, err = kdpl(*command)
    assert code == 0, err
    assert "1/6" not in resumed
    assert (tmp_path / "out" / "report.html").is_file()


def test_torchrun_with_other_devices_is_refused(tmp_path, monkeypatch, capsys):
    # what torchrun sets in each of two processes
    sets = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in sets.items():
        monkeypatch.setenv(name, value)
    assert main(["fit", *DATA, *TEACHER, *SHORT, f"--out={tmp_path / 'out'}"]) == 1
    error_line(capsys, "devices")
    assert not list(tmp_path.rglob("*.ckpt"))
