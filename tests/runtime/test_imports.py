import gc
import subprocess
import sys
from contextlib import suppress

import pytest
from kdpl.runtime.imports import uncollected

COMMAND = """
import gc
import torch

def look(args):
    print(gc.isenabled(), gc.get_freeze_count() > 50_000)
"""
START = """
import sys
from kdpl import __main__
__main__._COMMANDS["look"] = "looking:look"
sys.argv = ["kdpl", "look"]
sys.exit(__main__.main({}))
"""


@pytest.mark.parametrize(
    ("arguments", "spared"), [("", True), ('["look"]', False)], ids=["a process of its own", "within a program"]
)
def test_what_a_command_imports_is_spared_by_the_collector_in_a_process_of_its_own_alone(arguments, spared, tmp_path):
    (tmp_path / "looking.py").write_text(COMMAND)
    start = [sys.executable, "-c", START.format(arguments)]
    done = subprocess.run(start, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", str(spared)]


@pytest.mark.parametrize("before", [True, False])
def test_the_collector_is_on_after_a_failed_import_if_it_was_before(before, monkeypatch):
    monkeypatch.setattr(gc, "freeze", lambda: None)
    if not before:
        gc.disable()
    try:
        with suppress(ImportError), uncollected():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == before
    finally:
        gc.enable()
