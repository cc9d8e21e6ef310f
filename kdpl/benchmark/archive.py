"""Safe unpacking of downloaded archives: nothing is written outside the target folder."""

import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from kdpl.errors import DataError, reason

SUFFIX = re.compile(r"\.(zip|tar|tgz|tar\.(gz|bz2|xz))$", re.IGNORECASE)


def unpack(archive: Path, folder: Path, is_wrapper: Callable[[str], bool]) -> None:
    """Unpack a zip or tar archive into a folder, without the files that macOS adds.

    Members of a zip that would leave the folder are skipped. If the archive consists of one folder
    and ``is_wrapper`` is true of its name, the contents of that folder are unpacked instead.
    DataError if the archive is damaged, or a member of a tar would leave the folder or is a device.
    """
    try:
        # unpack next to the target, so that moving is a rename
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking.") as scratch:
            if zipfile.is_zipfile(archive):
                shutil.unpack_archive(archive, scratch, "zip")
            else:
                with tarfile.open(archive) as opened:
                    opened.extractall(scratch, filter="data")
            _move(Path(scratch), folder, is_wrapper)
    except Exception as error:  # formats raise errors of many classes on damaged bytes
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = reason(error).rstrip(":")
        raise DataError(
            f"archive {archive} is damaged or unsafe ({why}): remove it and download it again"
        ) from error


def _move(scratch: Path, folder: Path, is_wrapper: Callable[[str], bool]) -> None:
    # what macOS adds
    shutil.rmtree(scratch / "__MACOSX", ignore_errors=True)
    for path in [*scratch.rglob(".DS_Store"), *scratch.rglob("._*")]:
        path.unlink()
    # a folder around everything
    tops = list(scratch.iterdir())
    top = tops[0] if len(tops) == 1 and tops[0].is_dir() and is_wrapper(tops[0].name) else scratch
    for path in list(top.rglob("*")):
        target = folder / path.relative_to(top)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            path.replace(target)
