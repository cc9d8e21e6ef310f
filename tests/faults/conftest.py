import os
import shutil
import subprocess

import pytest


def _mounted(folder, *options):
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting needs root")
    done = subprocess.run(["mount", *options, folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


class Disk:
    """A small file system, mounted at a folder."""

    def __init__(self, folder):
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, leave=0):
        """Take all space but so many bytes."""
        self._ballast.touch()
        with self._ballast.open("ab", buffering=0) as file:
            while (free := shutil.disk_usage(self.folder).free - leave) >= 4096:
                file.write(bytes(min(free, 2**20)))

    def free(self):
        """Give the space back."""
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path):
    """An empty disk of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    _mounted(folder, "-t", "tmpfs", "-o", "size=8m", "tmpfs")
    yield Disk(folder)
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def read_only(tmp_path, request):
    """Gives a folder with the content of another that nothing can be written into, not by root either."""

    def mount(source):
        folder = tmp_path / "read_only"
        folder.mkdir()
        _mounted(folder, "--bind", "-o", "ro", source)
        request.addfinalizer(lambda: subprocess.run(["umount", "-l", folder], check=True))
        if os.access(folder, os.W_OK):
            pytest.skip("this mount does not bind read-only")
        return folder

    return mount
