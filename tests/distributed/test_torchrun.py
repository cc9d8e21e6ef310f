"""Commands that torchrun starts on two processes."""

import os
import subprocess
import sys

import pytest
from runs import DATA, SHORT, STAGES, TEACHER
from soak.comparison import differences

pytestmark = pytest.mark.slow

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "kdpl"]
TWO = "--trainer.devices=2"


def started(*command):
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("command", [["fit", *DATA, *TEACHER], ["run", *DATA, *STAGES]], ids=["fit", "run"])
def test_torchrun_gives_what_lightnings_launcher_gives(command, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    for launcher in ([sys.executable, "-m", "kdpl"], TORCHRUN):
        done = started(*launcher, *command, *SHORT, TWO, f"--out={out}")
        assert done.returncode == 0, done.stderr
        if launcher is not TORCHRUN:
            out.rename(other)
    # paths in configs are the same
    assert differences(other, out) == []


def test_torchrun_with_other_devices_is_refused(tmp_path):
    done = started(*TORCHRUN, "fit", *DATA, *TEACHER, *SHORT, f"--out={tmp_path / 'out'}")
    assert done.returncode != 0
    assert any(line.startswith("error: ") and "devices" in line for line in done.stderr.splitlines()), done.stderr
    assert not list(tmp_path.rglob("*.ckpt"))
