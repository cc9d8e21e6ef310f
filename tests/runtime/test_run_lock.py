import errno
import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest
import world
from kdpl.runtime.run_lock import RunLock, await_first, tidy

from kdpl.errors import ConfigError
from kdpl.runtime import run_lock

HOLD = """
import sys
from pathlib import Path
from kdpl.runtime.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder."""
    command = [sys.executable, "-c", HOLD, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_held_folder_is_refused_at_once_with_its_holder(holder, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits"))
    with pytest.raises(ConfigError, match=rf"into {tmp_path} \(process {holder.pid} on \S+\): wait for") as error:
        RunLock(tmp_path)
    assert world.one_sentence(error)


def test_a_job_waits_for_the_end_of_a_holder(holder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    timer = threading.Timer(1.2, holder.kill)
    start = time.monotonic()
    timer.start()
    RunLock(tmp_path).release()
    timer.join()
    assert time.monotonic() - start > 1
    assert f"is running into {tmp_path}: waiting 150 s for its end" in capsys.readouterr().err


def test_patience_ends(holder, tmp_path):
    start = time.monotonic()
    with pytest.raises(ConfigError, match="another process is running into"):
        RunLock(tmp_path, patience=1.5)
    assert time.monotonic() - start > 1.5


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    """Another process of a training, in a thread, that waits for its first one."""
    for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "of this start")
    # or the first would remove the folder as an empty one
    (tmp_path / "something").touch()
    thread = threading.Thread(target=await_first, args=(tmp_path, (tmp_path / "end").exists))
    thread.start()
    yield thread
    (tmp_path / "end").touch()
    thread.join()


def test_another_process_of_a_training_waits_until_the_first_holds_the_folder(holder, waiting, tmp_path):
    waiting.join(0.5)
    assert waiting.is_alive(), "the holder is of another start"
    holder.kill()
    holder.wait()
    waiting.join(0.5)
    assert waiting.is_alive(), "nobody holds it"
    lock = RunLock(tmp_path)
    waiting.join(60)
    assert not waiting.is_alive()
    lock.release()


def test_another_process_of_a_training_waits_no_longer_than_there_is_something_to_do(waiting, tmp_path):
    (tmp_path / "end").touch()
    waiting.join(60)
    assert not waiting.is_alive()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_and_the_run_goes_on(number, tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    out = tmp_path / "out"
    lock = RunLock(out)
    assert f"the file system of {out} knows no locks ({os.strerror(number)})" in capsys.readouterr().err
    lock.release()
    assert not out.exists()


def test_who_waits_for_a_holder_that_leaves_nothing_makes_the_folder_anew(tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = RunLock(out)
    refused = iter([True])
    real = fcntl.lockf

    def lockf(*args):
        if next(refused, False):
            # within a process the lock would be had at once
            first.release()
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        real(*args)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    RunLock(out, patience=10).release()
    assert not out.exists()


def test_a_process_whose_first_one_never_comes_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_LEASE_SECONDS", 0)
    monkeypatch.setattr(run_lock, "_IMPORTS_SECONDS", 0.2)
    with pytest.raises(ConfigError, match="for the first one of this training to hold"):
        run_lock.await_first(tmp_path, lambda: False)


def test_what_the_fit_of_a_stage_is_writing_is_left_to_it(tmp_path):
    for folder in (tmp_path, tmp_path / "teacher", tmp_path / "student"):
        (folder / "checkpoints" / ".last.ckpt.1.unfinished").mkdir(parents=True)
    (tmp_path / "teacher" / ".lock").touch()
    lock = RunLock(tmp_path)
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob(".*.unfinished")]
    lock.release()
    assert left == ["teacher/checkpoints/.last.ckpt.1.unfinished"]


def test_what_a_process_left_that_was_killed_at_its_very_end_is_tidied_up(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in (".lock", "result", "checkpoints/last.ckpt", "checkpoints/previous.ckpt"):
        (tmp_path / name).touch()
    tidy(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
        "checkpoints/last.ckpt",
        "result",
    ]


def test_a_lock_that_is_held_is_left_to_its_holder(holder, tmp_path):
    tidy(tmp_path)
    assert (tmp_path / ".lock").is_file()
    holder.kill()
    holder.wait()
    tidy(tmp_path)
    assert not (tmp_path / ".lock").exists()
