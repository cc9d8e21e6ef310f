import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import processes_of, wait_for

SCRIPT = """
import sys, time
from pathlib import Path

def slowly(item):
    time.sleep(item)
    return item

if __name__ == "__main__":
    from kdpl.__main__ import call
    from kdpl.runtime.interrupt import whole_process
    from work import slowly
    from kdpl.data.parallel import in_parallel

    def work(args):
        print("begins", flush=True)
        for _ in in_parallel(slowly, [float(args[0])] * 1000, "slowly", workers=2):
            print("has one", flush=True)

    with whole_process():
        code = call(work, sys.argv[1:])
    sys.exit(code)
"""


@pytest.fixture
def start(tmp_path):
    """Starts work that two processes do, each item of which takes so many seconds."""
    (tmp_path / "work.py").write_text(SCRIPT)
    started = []

    def begin(seconds):
        process = subprocess.Popen(
            [sys.executable, "work.py", str(seconds)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        started.append(process)
        assert process.stdout.readline() == "begins\n"
        return process

    yield begin
    for process in started:
        if processes_of(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("seconds", [0.0, 0.2, 1.0])
def test_ctrl_c_while_the_workers_begin_is_one_line(seconds, start):
    process = start(0.01)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")
    wait_for(lambda: not processes_of(process.pid))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_workers_end_with_the_process_that_started_them(number, code, start):
    process = start(0.02)
    assert process.stdout.readline() == "has one\n"
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    # Python's own tracker tells of what a killed process could not clear away
    assert err == "ended by SIGTERM\n" if number == signal.SIGTERM else "Traceback" not in err
    wait_for(lambda: not processes_of(process.pid))
