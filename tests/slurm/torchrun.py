"""Fits that torchrun starts. Beside the jobs of Slurm, since each takes several processes half a minute."""

import os
import subprocess
import sys

import pytest
from runs import DATA, TEACHER


@pytest.fixture(scope="module")
def torchrun():
    def start(*args):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "kdpl"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run([*command, *args], capture_output=True, text=True, timeout=120, env=env, check=False)

    return start


SHORT = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=3", "--trainer.enable_progress_bar=false"]


def test_torchrun_gives_what_lightnings_own_start_gives(torchrun, tmp_path):
    out, own = tmp_path / "torchrun", tmp_path / "own"
    fit = ["fit", *DATA, *TEACHER, *SHORT, "--trainer.devices=2"]
    done = torchrun(*fit, f"--out={out}")
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "kdpl", *fit, f"--out={own}"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (out / "class_vectors.safetensors").read_bytes() == (own / "class_vectors.safetensors").read_bytes()
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in own.iterdir())
    assert not list(out.rglob(".*"))


def test_torchrun_with_other_devices_is_one_sentence(torchrun, tmp_path):
    done = torchrun("fit", *DATA, *TEACHER, *SHORT, f"--out={tmp_path / 'out'}")
    assert done.returncode != 0
    (line,) = {line for line in done.stderr.splitlines() if line.startswith("error: ")}
    assert line == (
        "error: trainer.devices is 1 and trainer.num_nodes is 1, but torchrun started 2 processes on 1 node: set "
        "trainer.devices to 2 and trainer.num_nodes to 1, or change torchrun's --nproc_per_node"
    )
    assert not (tmp_path / "out").exists()
