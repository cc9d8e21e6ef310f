"""Unpacking archives from elsewhere, which never writes outside its folder."""

import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from kdpl.errors import DataError, KdplError, reason

SUFFIX = re.compile(r"\.(zip|tar|tgz|tar\.(gz|bz2|xz))$", re.IGNORECASE)

# zip and tar pack images hardly at all and texts to a fifth, but zeros to a thousandth
_MOST_UNPACKED = 100  # times the archive's size
_ANY_UNPACKED = 2**30  # bytes that may be unpacked whatever the archive's size


def unpack(archive: Path, folder: Path, is_own: Callable[[str], bool]) -> None:
    """Unpack a zip or tar archive into a folder, without what a Mac adds.

    Members of a zip that would leave the folder are left out. If all of the archive lies in one
    folder whose name ``is_own``, one of the target itself, that folder is left out. DataError if
    the archive is damaged, a member of a tar would leave the folder or is a device, or all are too
    large for the disk or for such an archive.
    """
    try:
        is_zip = zipfile.is_zipfile(archive)
        if is_zip:
            with zipfile.ZipFile(archive) as packed:
                size = sum(member.file_size for member in packed.infolist())
        else:
            with tarfile.open(archive) as opened:
                size = sum(member.size for member in opened)
        _require_room(archive, folder, size)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking.") as scratch:
            if is_zip:
                shutil.unpack_archive(archive, scratch, "zip")
            else:
                with tarfile.open(archive) as opened:
                    opened.extractall(scratch, filter="data")
            _move(Path(scratch), folder, is_own)
    except Exception as error:  # each format raises its own on damaged bytes
        if isinstance(error, KdplError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        why = reason(error).rstrip(":")
        raise DataError(
            f"archive {archive} is damaged or unsafe ({why}): remove it and download it again"
        ) from error


def _require_room(archive: Path, folder: Path, size: int) -> None:
    packed = archive.stat().st_size
    if size > max(_ANY_UNPACKED, _MOST_UNPACKED * packed):
        raise DataError(
            f"archive {archive} of {packed} bytes unpacks to {size}, as no dataset "
            "does: do not use it"
        )
    existing = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise DataError(
            f"archive {archive} unpacks to {size} bytes, and {existing} has {free} free: make room"
        )


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
