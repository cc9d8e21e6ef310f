"""Ctrl-C, SIGTERM, and failures of one process, in the middle of a training of one process and of two."""

import os
import signal
from pathlib import Path

import pytest
import torch
from runs import DATA, SHORT, STAGES, TEACHER, processes_of, start_process, wait_for

pytestmark = pytest.mark.slow

QUICK = [
    "--trainer.limit_train_batches=3",
    "--trainer.enable_progress_bar=false",
    "--data.init_args.num_workers=1",
]
LONG = "--trainer.max_epochs=3000"
FIT = ["fit", *DATA, *TEACHER, *QUICK]
ON = {1: [], 2: ["--trainer.devices=2", "--trainer.strategy=ddp"]}


def run_of(folder):
    """The arguments of a run whose second stage does not end by itself."""
    for name, number in {"teacher": 1, "student": 3000}.items():
        (folder / f"{name}.yaml").write_text(f"trainer: {{max_epochs: {number}}}")
    more = [f"--{name}={folder}/{name}.yaml" for name in ("teacher", "student")]
    return ["run", *DATA, *STAGES, *more, *QUICK]


@pytest.fixture
def started():
    """Starts commands, waits for a file of theirs, and leaves none of their processes behind."""
    all_of_them = []

    def start(args, file, **variables):
        process = start_process(args, **variables)
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
    ("command", "processes", "number"),
    [
        ("fit", 1, signal.SIGTERM),
        ("fit", 2, signal.SIGINT),
        ("run", 1, signal.SIGINT),
        ("run", 2, signal.SIGTERM),
    ],
)
def test_a_signal_ends_a_command_with_one_line_and_an_intact_checkpoint(
    command, processes, number, tmp_path, started
):
    out = tmp_path / "out"
    args = [*FIT, LONG] if command == "fit" else run_of(tmp_path)
    last = (out if command == "fit" else out / "student") / "checkpoints" / "last.ckpt"
    process = started([*args, *ON[processes], f"--out={out}"], last)
    # Ctrl-C reaches all processes of a terminal, SIGTERM the one that it is sent to
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    err = ended(process)
    code, word = (130, "interrupted") if number == signal.SIGINT else (143, "terminated")
    assert process.returncode == code, err
    assert err.count(f"{word}: ") == 1, err
    line = err.splitlines()[-1]
    assert line.startswith(f"{word}: rerun the same command to resume (after "), err
    assert f"{last} is kept" in line, err
    assert torch.load(last, weights_only=True)["global_step"] > 0
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize("which", [0, 1])
def test_where_one_of_two_processes_is_killed_the_other_ends(which, tmp_path, started):
    last = tmp_path / "checkpoints" / "last.ckpt"
    fit = [*FIT, LONG, *ON[2], "--data.init_args.num_workers=0", f"--out={tmp_path}"]
    process = started(fit, last)
    other = next(pid for pid in processes_of(process.pid) if pid != process.pid)
    os.kill((process.pid, other)[which], signal.SIGKILL)
    ended(process)
    assert process.returncode != 0
    assert torch.load(last, weights_only=True)["global_step"] > 0


def test_a_process_that_is_starting_ends_with_the_first(tmp_path):
    process = start_process([*FIT, *ON[2], f"--out={tmp_path}"])

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
import os
from lightning.pytorch import Callback
from kdpl.errors import ConfigError

class Failing(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 4 and trainer.global_rank == {rank}:
            raise ConfigError("step 5 is refused: give another")
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_of_two_processes_is_printed_and_ends_both(rank, tmp_path):
    (tmp_path / "failing.py").write_text(FAILING.format(rank=rank))
    out, path = tmp_path / "out", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    # no workers: forking while gloo's threads run has a rare race in CPython
    more = ["--trainer.callbacks+=failing.Failing", "--data.init_args.num_workers=0"]
    process = start_process([*FIT, *SHORT, *ON[2], *more, f"--out={out}"], PYTHONPATH=path)
    err = ended(process)
    assert process.returncode != 0
    kept = f"(after 4 steps; {out}/checkpoints/last.ckpt is kept)"
    assert f"error: step 5 is refused: give another {kept}" in err
    assert not (out / "class_vectors.safetensors").exists()


@pytest.mark.parametrize("killed", ["process", "worker"])
def test_a_process_and_its_workers_end_together(killed, tmp_path, started):
    last = tmp_path / "checkpoints" / "last.ckpt"
    process = started([*FIT, LONG, f"--out={tmp_path}"], last)
    command = Path(f"/proc/{process.pid}/cmdline").read_bytes()

    def workers():
        found = [pid for pid in processes_of(process.pid) if pid != process.pid]
        return [pid for pid in found if Path(f"/proc/{pid}/cmdline").read_bytes() == command]

    wait_for(workers)
    os.kill(process.pid if killed == "process" else workers()[0], signal.SIGKILL)
    err = ended(process)
    assert process.returncode == (-signal.SIGKILL if killed == "process" else 1)
    assert ("DataLoader worker" in err) == (killed == "worker")
    assert torch.load(last, weights_only=True)["global_step"] > 0
