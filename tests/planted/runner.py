"""Runs of pytest in copies of the project, in processes that begin with all libraries."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from forked import ForkedProcess
from planted.faults import ROOT, Fault, plant

# before huggingface_hub is imported, as conftest.py does
os.environ["HF_HUB_OFFLINE"] = "1"

_PASSED, _FAILED, _NO_TESTS = 0, 1, 5
# the list itself would notice each fault
_OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "watch", "--ignore=tests/planted")


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
        # where pytest finds it as a plugin
        shutil.copy2(Path(__file__).with_name("watch.py"), self.root)

    def run(self, paths, marker, fault):
        """Run tests of a marker until one fails, with a fault or without."""
        begin = time.monotonic()
        self.last_test.write_text("", encoding="utf-8")
        with plant(fault, self.root) if fault else nullcontext():
            code = self._pytest([*_OPTIONS, f"--basetemp={self.scratch}", "-m", marker, *paths])
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
                    control = self.run([outcome.test], marker, None)
                    assert control.test is None, f"{outcome.test} fails without a fault"
                    return Verdict(fault, suite, outcome)
        return Verdict(fault, "", outcome)

    def _pytest(self, options):
        """Return the exit code of pytest in a process of its own."""
        # kdpl and the tests are those of the copy, also in processes that tests start
        variables = {"PYTHONPATH": str(self.root), "PLANTED_LAST_TEST": str(self.last_test)}
        with self.log.open("w") as log:
            command = ["-m", "pytest", *options]
            process = ForkedProcess(command, os.environ | variables, self.root, log, log)
        try:
            return process.wait()
        finally:
            # with the processes that tests started
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
