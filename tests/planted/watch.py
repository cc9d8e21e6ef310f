"""A plugin for pytest: writes the test that runs, and how it failed; ends the process if one takes too long."""

import os
import signal
from pathlib import Path

FILE = Path(os.environ["PLANTED_LAST_TEST"])
SECONDS = 300  # a test that takes longer has an endless loop


def pytest_runtest_logstart(nodeid, location):
    signal.alarm(SECONDS)
    FILE.write_text(f"{nodeid}\n", encoding="utf-8")


def pytest_runtest_logreport(report):
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        words = " ".join(str(report.longrepr if crash is None else crash.message).split())
        FILE.write_text(f"{report.nodeid}\n{words or 'failed':.200}", encoding="utf-8")
