"""Unpacking archives from elsewhere, which never writes outside its folder."""

import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from kdpl.errors import DataError, reason

SUFFIX = re.compile(r"\.(zip|tar|tgz|tar\.(gz|bz2|xz))$", re.IGNORECASE)


def unpack(archive: Path, folder: Path, is_own: Callable[[str], bool]) -> None:
    """Unpack a zip or tar archive into a folder, without what a Mac adds.

    Members of a zip that would leave the folder are left out. If all of the archive lies in one
    folder whose name ``is_own``, one of the target itself, that folder is left out. DataError if
    the archive is damaged, or a member of a tar would leave the folder or is a device.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking.") as scratch:
            if zipfile.is_zipfile(archive):
                shutil.unpack_archive(archive, scratch, "zip")
            else:
                with tarfile.open(archive) as opened:
                    opened.extractall(scratch, filter="data")
            _move(Path(scratch), folder, is_own)
    except Exception as error:  # each format raises its own on damaged bytes
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = reason(error).rstrip(":")
        raise DataError(
            f"archive {archive} is damaged or unsafe ({why}): remove it and download it again"
        ) from error


def _move(scratch: Path, folder: Path, is_own: Callable[[str], bool]) -> None:
    shutil.rmtree(scratch / "__MACOSX", ignore_errors=True)
    for path in [*scratch.rglob(".DS_Store"), *scratch.rglob("._*")]:
        path.unlink()
    tops = list(scratch.iterdir())
    top = tops[0] if len(tops) == 1 and tops[0].is_dir() and is_own(tops[0].name) else scratch
    for path in list(top.rglob("*")):
        target = folder / path.relative_to(top)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            path.replace(target)
