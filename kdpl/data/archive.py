"""Unpacking archives from elsewhere: every member is checked before anything is written."""

import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from kdpl.data.readers.shards import Member
from kdpl.data.storage import stays_inside
from kdpl.errors import DataError, KdplError, reason, visible

SUFFIX = re.compile(r"\.(zip|tar|tgz|tar\.(gz|bz2|xz))$", re.IGNORECASE)

# zip and tar pack images hardly at all and texts to a fifth, but zeros to a thousandth
_MOST_UNPACKED = 100  # times the archive's size
_ANY_UNPACKED = 2**30  # bytes that may be unpacked whatever the archive's size


def unpack(archive: Path, folder: Path, is_own: Callable[[str], bool]) -> None:
    """Unpack a zip or tar archive into a folder, without what a Mac adds.

    Args:
        archive: The archive.
        folder: The target; nobody else writes there meanwhile.
        is_own: Whether a name is one of ``folder`` itself: if all of the archive lies in one folder of such a name,
            that folder is left out.

    Raises:
        DataError: The archive is damaged, or before anything is written: a member would leave the folder, is a link or
            a device, or all of them are too large for the disk or for such an archive.
    """
    try:
        is_zip = zipfile.is_zipfile(archive)
        size = _checked_zip(archive) if is_zip else _checked_tar(archive)
        _require_room(archive, folder, size)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking.") as scratch:
            if is_zip:
                shutil.unpack_archive(archive, scratch, "zip")
            else:
                with tarfile.open(archive, tarinfo=Member) as opened:
                    opened.extractall(scratch, filter="data")
            _move(Path(scratch), folder, is_own)
    except Exception as error:  # each format raises its own on damaged bytes
        if isinstance(error, KdplError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise DataError(
            f"archive {archive} is damaged ({reason(error).rstrip(':')}): remove it and download it again"
        ) from error


def _checked_zip(archive: Path) -> int:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            _check(archive, info.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        return sum(info.file_size for info in opened.infolist())


def _checked_tar(archive: Path) -> int:
    size = 0
    with tarfile.open(archive, tarinfo=Member) as opened:
        for info in opened:
            _check(archive, info.name, info.isdir() or (isinstance(info, Member) and info.is_plain))
            size += info.size
    return size


def _check(archive: Path, name: str, is_plain: bool) -> None:
    fault = None
    if visible(name) != name:
        fault = "has characters in its name that cannot be shown"
    elif name not in (".", "./") and not stays_inside(name):
        fault = "leaves its folder"
    elif not is_plain:
        fault = "is neither file nor folder"
    if fault:
        raise DataError(f"archive {archive} has a member {name!r:.200} that {fault}: do not use it")


def _require_room(archive: Path, folder: Path, size: int) -> None:
    packed = archive.stat().st_size
    if size > max(_ANY_UNPACKED, _MOST_UNPACKED * packed):
        raise DataError(
            f"archive {archive} has {packed} bytes and says that {size} are in it, as no dataset does: do not use it"
        )
    existing = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise DataError(f"archive {archive} unpacks to {size} bytes, and {existing} has {free} free: make room")


def _move(scratch: Path, folder: Path, is_own: Callable[[str], bool]) -> None:
    shutil.rmtree(scratch / "__MACOSX", ignore_errors=True)
    for pattern in (".DS_Store", "._*"):
        for path in list(scratch.rglob(pattern)):
            path.unlink()
    tops = list(scratch.iterdir())
    top = tops[0] if len(tops) == 1 and tops[0].is_dir() and is_own(tops[0].name) else scratch
    for path in list(top.rglob("*")):
        target = folder / path.relative_to(top)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            path.replace(target)
