import subprocess
import sys

COMPLAIN = """
import sys
from kdpl.runtime import worker

worker.begin()
for error in (ConnectionResetError("no"), EOFError("no"), ValueError("yes")):
    sys.excepthook(type(error), error, None)
"""


def test_a_worker_does_not_complain_of_a_starter_that_is_gone_and_does_of_all_else():
    done = subprocess.run([sys.executable, "-c", COMPLAIN], capture_output=True, text=True, check=True)
    assert done.stderr == "ValueError: yes\n"
