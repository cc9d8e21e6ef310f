"""Ctrl-C, SIGTERM, and failures of one process, in the middle of a training of one process and of two."""

import os
import signal
from pathlib import Path

import pytest
import torch
from differences import differences
from runs import DATA, SHORT, STAGES, TEACHER, processes_of, start_process, wait_for

from kdpl.__main__ import main

pytestmark = pytest.mark.slow

QUICK = [
    "--trainer.limit_train_batches=3",
    "--trainer.enable_progress_bar=false",
    # no workers: forking while gloo's threads run has a rare race in CPython
    "--data.init_args.num_workers=0",
]
LONG = "--trainer.max_epochs=3000"
FIT = ["fit", *DATA, *TEACHER, *QUICK]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


@pytest.fixture
def started():
    """Starts commands, waits for a file of theirs, and leaves none of their processes behind."""
    all_of_them = []

    def start(args, file):
        process = start_process(args)
        all_of_them.append(process)
        wait_for(lambda: file.exists() or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        return process

    yield start
    for process in all_of_them:
        if processes_of(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def ended(process):
    """What a process printed as it ended; no process of its group remains."""
    _, err = process.communicate()
    wait_for(lambda: not processes_of(process.pid))
    return err


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_ends_two_processes_with_one_line_and_an_intact_checkpoint(
    number, code, word, tmp_path, started
):
    out = tmp_path / "out"
    last = out / "teacher" / "checkpoints" / "last.ckpt"
    process = started(["run", *DATA, *STAGES, *QUICK, LONG, *TWO, f"--out={out}"], last)
    # Ctrl-C reaches all processes of a terminal, SIGTERM the one that it is sent to
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    err = ended(process)
    assert process.returncode == code, err
    assert err.count(f"{word}: ") == 1, err
    line = err.splitlines()[-1]
    assert line.startswith(f"{word}: rerun the same command to resume (after "), err
    assert f"{last} is kept" in line, err
    assert torch.load(last, weights_only=True)["global_step"] > 0
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_a_killed_run_ends_as_one_that_was_not(stage, tmp_path, started):
    out, whole = tmp_path / "out", tmp_path / "whole"
    run = ["run", *DATA, *STAGES, *SHORT, f"--out={out}"]
    assert main(run) == 0
    out.rename(whole)  # paths in configs are the same
    process = started(run, out / stage / "checkpoints" / "last.ckpt")
    os.killpg(process.pid, signal.SIGKILL)
    ended(process)
    assert main(run) == 0
    assert differences(whole, out) == []


@pytest.mark.parametrize("which", [0, 1])
def test_where_one_of_two_processes_is_killed_the_other_ends(which, tmp_path, started):
    last = tmp_path / "checkpoints" / "last.ckpt"
    process = started([*FIT, LONG, *TWO, f"--out={tmp_path}"], last)
    other = next(pid for pid in processes_of(process.pid) if pid != process.pid)
    os.kill((process.pid, other)[which], signal.SIGKILL)
    ended(process)
    assert process.returncode != 0
    assert torch.load(last, weights_only=True)["global_step"] > 0


def test_a_process_that_is_starting_ends_with_the_first(tmp_path):
    process = start_process([*FIT, *TWO, f"--out={tmp_path}"])

    def starting():
        others = [pid for pid in processes_of(process.pid) if pid != process.pid]
        # with its second thread it has begun to look after the first process
        return any(len([*Path(f"/proc/{pid}/task").iterdir()]) > 1 for pid in others)

    wait_for(starting)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # torch would look for the first process for five minutes
    wait_for(lambda: not processes_of(process.pid), 30)


FAILING = """
from lightning.pytorch import Callback
from kdpl.errors import ConfigError

class Failing(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 4 and trainer.global_rank == 1:
            raise ConfigError("step 5 is refused: give another")
"""


def test_an_error_of_the_second_process_is_printed_and_ends_both(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    out, path = tmp_path / "out", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    more = ["--trainer.callbacks+=failing.Failing", f"--out={out}"]
    process = start_process([*FIT, *SHORT, *TWO, *more], PYTHONPATH=path)
    err = ended(process)
    assert process.returncode != 0
    kept = f"(after 4 steps; {out}/checkpoints/last.ckpt is kept)"
    assert f"error: step 5 is refused: give another {kept}" in err
    assert not (out / "class_vectors.safetensors").exists()


def test_a_process_whose_worker_is_killed_ends(tmp_path, started):
    last = tmp_path / "checkpoints" / "last.ckpt"
    process = started([*FIT, LONG, "--data.init_args.num_workers=1", f"--out={tmp_path}"], last)
    workers = []
    # each epoch has another
    wait_for(lambda: workers.extend(set(processes_of(process.pid)) - {process.pid}) or workers)
    os.kill(workers[0], signal.SIGKILL)
    err = ended(process)
    assert process.returncode == 1
    assert "DataLoader worker" in err
    assert torch.load(last, weights_only=True)["global_step"] > 0
