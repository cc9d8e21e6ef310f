import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from runs import DATA, SHORT, STUDENT, TEACHER, fit_student, processes_of, soon, start_process, wait_for
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

FIT = ["fit", *DATA, *TEACHER, *SHORT, "--trainer.max_epochs=3000", "--data.init_args.num_workers=1"]
SIGNALS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")]
RUN = ["run", *(f"{arg}".replace("--config", "--teacher") for arg in TEACHER)]
RUN += [f"{arg}".replace("--config", "--student") for arg in STUDENT] + [*DATA, *FIT[3 + len(TEACHER) :]]


@pytest.fixture
def started():
    """Starts commands, and leaves none of their processes behind."""
    all_of_them = []

    def start(args, checkpoint, **variables):
        process = start_process(args, **variables)
        all_of_them.append(process)
        wait_for(lambda: checkpoint.exists() or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        return process

    yield start
    for process in all_of_them:
        if processes_of(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
@pytest.mark.parametrize("command", ["fit", "run"])
def test_a_signal_ends_a_command_with_one_line_a_whole_checkpoint_and_no_process(
    command, number, code, word, tmp_path, started
):
    folder = tmp_path / "teacher" if command == "run" else tmp_path
    last = folder / "checkpoints" / "last.ckpt"
    process = started([*(RUN if command == "run" else FIT), f"--out={tmp_path}"], last)
    # Ctrl-C reaches all processes of a terminal, SIGTERM the one that it is sent to
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    lines = [line for line in err.splitlines() if word in line]
    assert len(lines) == 1, err
    assert lines[0].startswith(f"{word}: start the same command again to go on (after "), err
    assert f"{last} is kept)" in lines[0]
    assert "Traceback" not in err, err
    assert torch.load(last, weights_only=True)["global_step"] > 0
    wait_for(lambda: not processes_of(process.pid))
    assert not [p for p in tmp_path.rglob(".*") if p.name != ".lock"]


DDP = ["--trainer.devices=2", "--trainer.strategy=ddp"]


@pytest.fixture
def starting(tmp_path):
    """A training whose second process has just been started, and has not imported anything yet."""
    process = start_process([*FIT, *DDP, f"--out={tmp_path}"])

    def other_has_begun():
        assert process.poll() is None, process.stderr.read()
        return any(b"kdpl" in command_of(pid) and pid != process.pid for pid in processes_of(process.pid))

    wait_for(other_has_begun)
    yield process
    if processes_of(process.pid):
        os.killpg(process.pid, signal.SIGKILL)


# the first waits for the other one in code that is not Python's
@pytest.mark.parametrize(("number", "code", "word", "seconds"), [(*SIGNALS[0], 0.05), (*SIGNALS[1], 2.0)])
def test_a_signal_while_the_other_process_of_a_training_starts_is_one_line_at_once(
    number, code, word, seconds, starting
):
    time.sleep(seconds)
    require_one_line(starting, number, code, word)


def test_a_process_whose_starter_was_killed_before_it_had_begun_ends_as_well(starting):
    starting.kill()
    wait_for(lambda: not processes_of(starting.pid))
    assert "error: another process of this training ended, and this one cannot go on alone" in starting.stderr.read()


@pytest.mark.parametrize(
    ("number", "code", "word", "send", "more"),
    [
        (*SIGNALS[0], os.killpg, []),
        (*SIGNALS[1], os.killpg, []),
        # as docs/cluster.md has plugins given
        (*SIGNALS[1], os.kill, ["--trainer.plugins=lightning.pytorch.plugins.environments.LightningEnvironment"]),
    ],
    ids=["Ctrl-C", "SIGTERM to all", "SIGTERM to the first, in an environment that was given"],
)
def test_a_signal_ends_a_training_of_two_processes(number, code, word, send, more, tmp_path, started):
    process = started([*FIT, *DDP, *more, f"--out={tmp_path}"], tmp_path / "checkpoints" / "last.ckpt")
    err = require_one_line(process, number, code, word, send)
    assert f"{tmp_path}/checkpoints/last.ckpt is kept" in err


def require_one_line(process, number, code, word, send=os.killpg):
    """Send a signal: it ends all processes at once, one of which says so."""
    send(process.pid, number)
    with soon():
        _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert len([line for line in err.splitlines() if line.startswith(word)]) == 1, err
    assert "Traceback" not in err, err
    assert "Child process" not in err
    assert "error: " not in err
    wait_for(lambda: not processes_of(process.pid))
    return err


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


SLOW = """
import time
from pathlib import Path
from lightning.pytorch import Callback

class SlowFarewell(Callback):
    def on_exception(self, trainer, module, error):
        Path(trainer.default_root_dir, "leaving").touch()
        time.sleep(120)
"""


def test_ctrl_c_twice_ends_at_once(tmp_path, started):
    (tmp_path / "slow.py").write_text(SLOW)
    last = tmp_path / "out" / "checkpoints" / "last.ckpt"
    slow = ["--trainer.callbacks+=slow.SlowFarewell", f"--out={tmp_path / 'out'}"]
    process = started(
        [*FIT, *slow], last, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    )
    os.killpg(process.pid, signal.SIGINT)
    wait_for((tmp_path / "out" / "leaving").exists)
    # a second one within half a second counts as the first once more
    time.sleep(1)
    assert process.poll() is None, process.stderr.read()
    os.killpg(process.pid, signal.SIGINT)
    with soon():
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "interrupted\n"
    assert torch.load(last, weights_only=True)["global_step"] > 0
    wait_for(lambda: not processes_of(process.pid))


def test_the_step_of_a_run_that_was_killed_ends_as_well_and_its_workers(tmp_path, started):
    process = started([*RUN, f"--out={tmp_path}"], tmp_path / "teacher" / "checkpoints" / "last.ckpt")
    assert len(processes_of(process.pid)) >= 3
    process.kill()
    process.wait(timeout=60)
    wait_for(lambda: not processes_of(process.pid))


def kill_at_rest(workers):
    os.kill(workers[0].pid, signal.SIGKILL)
    # its end, which torch's handler of SIGCHLD raises here
    os.waitid(os.P_PID, workers[0].pid, os.WEXITED | os.WNOWAIT)


def kill_while_it_hands_an_image_over(workers):
    os.kill(workers[0].pid, signal.SIGKILL)
    # what is read of a connection that breaks; the end itself is told a moment later
    raise EOFError


@pytest.mark.parametrize("kill", [kill_at_rest, kill_while_it_hands_an_image_over])
def test_a_worker_that_is_killed_ends_the_fit_with_one_sentence_and_a_next_start_ends_as_an_uncut_run(
    kill, tmp_path, teacher_run, student_run, capsys, monkeypatch
):
    original = _MultiProcessingDataLoaderIter._next_data
    last = tmp_path / "checkpoints" / "last.ckpt"

    def next_data(self):
        if last.exists():
            kill(self._workers)
        return original(self)

    workers = "--data.init_args.num_workers=2"
    with monkeypatch.context() as patch:
        patch.setattr(_MultiProcessingDataLoaderIter, "_next_data", next_data)
        with soon():
            assert fit_student(tmp_path, teacher_run, workers) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match(
        "error: a worker process that loads images (is killed by signal: Killed|ended unexpectedly), ", line
    )
    assert line.endswith(f"(after 3 steps; {last} is kept)")
    assert fit_student(tmp_path, teacher_run, workers) == 0
    weights = "classifier/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (student_run / weights).read_bytes()


def test_a_killed_worker_that_strikes_again_while_the_trainer_is_taken_down_hides_no_checkpoint(
    tmp_path, teacher_run, capsys, monkeypatch
):
    from kdpl.callbacks.throughput import Throughput

    # torch says so each time a process ends, also one of the others as they are sent home
    def strike(*args):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    def strike_in_the_second_epoch(self, trainer, *args):
        if trainer.current_epoch == 1:
            strike()

    monkeypatch.setattr(Throughput, "on_train_batch_end", strike_in_the_second_epoch)
    monkeypatch.setattr("lightning.pytorch.Trainer._teardown", strike)
    assert fit_student(tmp_path, teacher_run) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: a worker process that loads images is killed by signal: Killed, ")
    assert line.endswith(f" to go on (after 4 steps; {tmp_path}/checkpoints/last.ckpt is kept)")
