import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kdpl.runtime.interrupt import TERMINATED, Terminated
from kdpl.runtime.processes import in_own_process
from runs import CONFIGS, DATA, hears_sigterm, processes_of, start_process

TESTS = Path(__file__).parents[1]

WORK = """
import os, sys, time
from pathlib import Path

def work(folder):
    print("printed", flush=True)
    print("complained", file=sys.stderr)
    os.system("echo from a child")
    (Path(folder) / "pid").write_text(str(os.getpid()))
    while not (Path(folder) / "end").exists():
        time.sleep(0.05)
    sys.exit(7)

if __name__ == "__main__":
    from kdpl.runtime.processes import in_own_process
    folder = Path(sys.argv[1])
    ticks = []
    held = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    import fcntl
    fcntl.flock(held, fcntl.LOCK_EX)
    from work import work
    code = in_own_process(work, str(folder), log=folder / "log", held=held, tick=lambda: ticks.append(1))
    print(code, len(ticks) > 0)
"""


@pytest.fixture
def worker(tmp_path):
    """A process that works in a process of its own until there is a file ``end``."""
    (tmp_path / "work.py").write_text(WORK)
    process = subprocess.Popen(
        [sys.executable, "work.py", tmp_path],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"},
    )
    yield process
    (tmp_path / "end").touch()
    process.communicate(timeout=60)


def wait_for(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def locked(file):
    descriptor = os.open(file, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # a zombie that nobody waits for has ended as well
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_it_prints_goes_to_the_log_and_its_exit_code_comes_back(worker, tmp_path):
    (tmp_path / "log").write_text("before\n")
    wait_for((tmp_path / "pid").exists, "the process did not begin")
    (tmp_path / "end").touch()
    out, err = worker.communicate(timeout=60)
    assert out == "7 True\n"
    assert err == ""
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["before", "complained", "from a child", "printed"]


def test_a_killed_parent_takes_its_process_along_and_the_lock_is_free_once_both_are_gone(worker, tmp_path):
    wait_for((tmp_path / "pid").exists, "the process did not begin")
    pid = int((tmp_path / "pid").read_text())
    assert locked(tmp_path / "lock")
    os.kill(pid, signal.SIGSTOP)
    worker.send_signal(signal.SIGKILL)
    worker.wait(timeout=60)
    # it cannot go yet, and what it works on is still its own
    assert locked(tmp_path / "lock")
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not runs(pid), "the process stayed")
    wait_for(lambda: not locked(tmp_path / "lock"), "the lock stayed")


def end_without_hearing(how):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(how["parent"], signal.SIGTERM)
    time.sleep(0.5)
    sys.exit(how["code"])


@pytest.mark.parametrize("code", [0, 1])
def test_a_sigterm_that_comes_as_the_process_ends_is_not_lost(code):
    with pytest.raises(Terminated):
        in_own_process(end_without_hearing, {"parent": os.getpid(), "code": code})


class SignalsWhenItIsSent:
    """An argument: as the new process is told of it, its starter is sent SIGTERM."""

    def __getstate__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}


def sleep(_):
    time.sleep(60)


def test_a_sigterm_that_comes_as_the_process_starts_ends_it_with_one_line(tmp_path):
    assert in_own_process(sleep, SignalsWhenItIsSent(), log=tmp_path / "log") == TERMINATED
    assert (tmp_path / "log").read_text() == "ended by SIGTERM\n"


def kill_itself(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_said_so_where_its_output_goes(tmp_path, capfd):
    assert in_own_process(kill_itself, None) == 128 + signal.SIGKILL
    line = "error: a process of this command was killed (SIGKILL), as one for which memory is short: start the same"
    assert line in capfd.readouterr().err
    assert in_own_process(kill_itself, None, log=tmp_path / "log") == 128 + signal.SIGKILL
    assert line in (tmp_path / "log").read_text()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("seconds", [None, 0.0, 0.3, 1.0, 2.0])
def test_ctrl_c_while_a_run_begins_is_one_line(seconds, tmp_path):
    stages = [f"--{name}={CONFIGS}/{name}/quickstart.yaml" for name in ("teacher", "student")]
    process = start_process(["run", *DATA, *stages, f"--out={tmp_path / 'out'}"])
    if seconds is None:
        # Python itself begins
        time.sleep(0.3)
    else:
        wait_for(lambda: hears_sigterm(process), "it hears nothing")
        time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if seconds is None:
        assert process.returncode in (130, -signal.SIGINT)
    else:
        assert process.returncode == 130, err
        assert "Traceback" not in err
        # on a fast machine with what is kept, for training has begun
        assert len([line for line in err.splitlines() if line.startswith("interrupted")]) == 1, err
    wait_for(lambda: not processes_of(process.pid), "processes stay")


STEP = """
import sys, time

def step(_):
    print("now", flush=True)
    time.sleep(120)

if __name__ == "__main__":
    from kdpl.runtime import processes
    from kdpl.__main__ import call
    from kdpl.runtime.interrupt import whole_process
    from step import step
    processes._HEARD_SECONDS = 1

    def command(_):
        return processes.in_own_process(step, None)

    with whole_process():
        code = call(command, [])
    sys.exit(code)
"""


def test_ctrl_c_that_only_the_command_hears_ends_its_step_as_well(tmp_path):
    (tmp_path / "step.py").write_text(STEP)
    process = subprocess.Popen(
        [sys.executable, "step.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")
    wait_for(lambda: not processes_of(process.pid), "processes stay")
