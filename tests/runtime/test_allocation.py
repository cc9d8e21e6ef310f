import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from kdpl.runtime.allocation import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.ones(2**22) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

pages()
print(pages())
keep_freed_memory()
# the least of several steps: a busy system may take pages back in between
print(min(pages() for _ in range(6)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_memory_of_a_step_is_that_of_the_step_before():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    as_usual, kept = map(int, done.stdout.split())
    # 128 MiB, in pages of 4 KiB
    assert as_usual > 30_000
    assert kept < 100
