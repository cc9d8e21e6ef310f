import os
import shutil
import subprocess

import pytest


@pytest.fixture
def mounted(request):
    """Mounts a file system at a folder until the test has ended."""

    def mount(folder, *options):
        if os.geteuid() != 0 or shutil.which("mount") is None:
            pytest.skip("mounting needs root")
        folder.mkdir()
        done = subprocess.run(["mount", *options, folder], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")
        request.addfinalizer(lambda: subprocess.run(["umount", "-l", folder], check=True))
        return folder

    return mount


@pytest.fixture
def read_only(tmp_path, mounted):
    """Gives a folder with the content of another that nothing can be written into, not by root either."""

    def mount(source):
        folder = mounted(tmp_path / "read_only", "--bind", "-o", "ro", source)
        if os.access(folder, os.W_OK):
            pytest.skip("this mount does not bind read-only")
        return folder

    return mount
