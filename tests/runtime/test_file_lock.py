import errno
import fcntl
import os
import subprocess
import sys

import pytest

from kdpl.benchmark.locks import lock
from kdpl.runtime import file_lock

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", [fcntl.flock, fcntl.lockf])
def test_a_lock_is_taken_once(how, tmp_path):
    code = HOLD.replace("fcntl.flock", f"fcntl.{how.__name__}")
    command = [sys.executable, "-c", code, tmp_path / "lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with (tmp_path / "lock").open("a") as file:
            assert not file_lock.taken(how, file.fileno(), tmp_path)
            other.communicate()
            assert file_lock.taken(how, file.fileno(), tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_once_and_work_goes_on(number, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for task in ("one", "two"):
        with lock(tmp_path, task) as held:
            assert held is not None
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"the file system of {tmp_path}/.locks knows no locks ({os.strerror(number)})" in err
