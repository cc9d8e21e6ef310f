"""Runs of pytest in copies of the project, in processes forked from one with all libraries."""

import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import types
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

# before torch and huggingface_hub are imported, as conftest.py does
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

from forked import LIBRARIES
from planted.faults import ROOT, Fault, plant

SECONDS = 300  # a test that takes longer has an endless loop
_PASSED, _FAILED, _NO_TESTS, _NO_PYTEST = 0, 1, 5, 100
# the list itself would notice each fault
_OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "--ignore=tests/planted")


class Outcome(NamedTuple):
    """The first failed test, None if all passed; seconds; what failed, or kept pytest from it."""

    test: str | None
    seconds: float
    words: str = ""


class Verdict(NamedTuple):
    """A fault, the suite that caught it ("" for none), and the last run."""

    fault: Fault
    suite: str
    outcome: Outcome


class Copy:
    """A copy of the project in a folder, in which faults are planted."""

    def __init__(self, folder):
        self.root, self.scratch = folder / "copy", folder / "tmp"
        self.log, self.last_test = folder / "log.txt", folder / "test.txt"
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in names.rstrip("\0").split("\0"):
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name)

    def run(self, paths, marker, fault=None):
        """Run tests of a marker until one fails, with a fault or without."""
        begin = time.monotonic()
        self.last_test.write_text("", encoding="utf-8")
        with plant(fault, self.root) if fault is not None else nullcontext():
            code = self._forked([*_OPTIONS, f"--basetemp={self.scratch}", "-m", marker, *paths])
        seconds = time.monotonic() - begin
        if code in (_PASSED, _NO_TESTS):
            return Outcome(None, seconds)
        test, _, words = self.last_test.read_text(encoding="utf-8").partition("\n")
        if code < 0 and test:
            return Outcome(test, seconds, f"ended by {signal.Signals(-code).name}")
        if code == _FAILED and words:
            return Outcome(test, seconds, words)
        return Outcome(None, seconds, self.log.read_text(encoding="utf-8")[-2000:])

    def verdict_of(self, fault, whole_suite):
        """Try the named fast tests, then the named slow ones, then perhaps the whole fast suite."""
        attempts = [("fast", fault.tests, "not slow"), ("slow", fault.slow, "slow")]
        attempts += [("whole fast", ["tests"], "not slow")] if whole_suite else []
        for suite, paths, marker in attempts:
            if paths:
                outcome = self.run(paths, marker, fault)
                if outcome.test is not None:
                    return Verdict(fault, suite, outcome)
        return Verdict(fault, "", outcome)

    def _forked(self, options):
        """Return the exit code of pytest in a process of its own."""
        child = os.fork()
        if child == 0:
            try:
                self._become_pytest(options)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(_NO_PYTEST)
        try:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        finally:
            # with the processes that tests started
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)

    def _become_pytest(self, options):
        import pytest

        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(self.root)
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        # kdpl and the tests are those of the copy, also in processes that tests start
        other_paths = [path for path in sys.path if path not in (str(ROOT), str(ROOT / "tests"))]
        sys.path[:] = [str(self.root), *other_paths]
        os.environ["PYTHONPATH"] = str(self.root)
        for name in [name for name in sys.modules if name.startswith(("forked", "planted"))]:
            del sys.modules[name]
        sys.modules["__main__"] = types.ModuleType("__main__")
        sys.argv = ["pytest", *options]
        import kdpl

        assert Path(kdpl.__file__).is_relative_to(self.root), kdpl.__file__
        code = pytest.main(options, plugins=[_Watch(self.last_test)])
        sys.stdout.flush()
        os._exit(int(code))


class _Watch:
    """Writes the test that runs, and how it failed; ends the process if one takes too long."""

    def __init__(self, file):
        self.file = file

    def pytest_runtest_logstart(self, nodeid, location):
        signal.alarm(SECONDS)
        self.file.write_text(f"{nodeid}\n", encoding="utf-8")

    def pytest_runtest_logreport(self, report):
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            words = " ".join(str(report.longrepr if crash is None else crash.message).split())
            self.file.write_text(f"{report.nodeid}\n{words or 'failed':.200}", encoding="utf-8")


def import_libraries():
    """Import what the tests need, but nothing of kdpl or of the tests."""
    for name in ("pytest", "hypothesis", *LIBRARIES):
        import_module(name)
