"""Unpacking archives from elsewhere: all names are looked at before anything is written."""

import os
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Literal, NamedTuple

from rich.console import Console
from rich.progress import track

from kdpl.data.inside import stays_inside
from kdpl.data.tar_members import Member
from kdpl.errors import DataError, KdplError, reason, visible

SUFFIX = re.compile(r"\.(zip|tar|tgz|tar\.(gz|bz2|xz))$", re.IGNORECASE)

# zip and tar pack images not at all, texts to a fifth; what is empty over and over, to a thousandth
_MOST_UNPACKED = 100  # times the archive's size
_ANY_UNPACKED = 2**30  # bytes that may be unpacked whatever the archive's size


class _Member(NamedTuple):
    """A file, a folder, or something else (a link, a device) in an archive."""

    name: str
    size: int
    kind: Literal["file", "folder", "other"]
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path, is_own: Callable[[str], bool]) -> None:
    """Unpack a zip or tar archive into a folder.

    Only plain files and folders are written, with the modes of new files. What a Mac adds is left out.

    Args:
        archive: The archive.
        folder: Where to; nobody else writes there meanwhile.
        is_own: Whether a name is one of ``folder`` itself: where all of the archive lies in one folder of such a name,
            that folder is left out.

    Raises:
        DataError: If the archive is damaged, or a member would leave the folder, is a link or a device, or is a
            file and a folder, or all of them are too large for the disk or for such an archive; in all but the first
            case before anything is written.
    """
    with _opened(archive) as all_members:
        # the folder itself, as tar writes it for a dot
        members = [member for member in all_members if member.kind != "folder" or _parts(member.name)]
        for member in members:
            fault = _fault(member)
            if fault:
                raise DataError(f"archive {archive} has a member {member.name!r:.200} that {fault}: do not use it.")
        _require_places(archive, members)
        _require_room(archive, folder, sum(member.size for member in members))
        members = [member for member in members if not _is_of_a_mac(member.name)]
        tops = {_parts(member.name)[0] for member in members}
        skipped = int(len(tops) == 1 and all(is_own(top) for top in tops))
        description = f"unpacking {archive.name}"
        console = Console(stderr=True)
        for member in track(members, description, console=console, transient=True, disable=not console.is_terminal):
            target = folder.joinpath(*_parts(member.name)[skipped:])
            if member.kind == "folder":
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            content = member.open()
            if content is not None:
                with content, target.open("wb") as file:
                    _copy(content, file, target)


@contextmanager
def _opened(archive: Path) -> Iterator[Sequence[_Member]]:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                yield [_of_zip(zipped, info) for info in zipped.infolist()]
        else:
            with tarfile.open(archive, tarinfo=Member) as tarred:
                yield [_of_tar(tarred, info) for info in tarred]
    except Exception as error:  # each way to pack raises its own at garbled bytes
        if isinstance(error, KdplError) or (isinstance(error, OSError) and error.filename is not None):
            raise
        raise DataError(
            f"archive {archive} is damaged ({reason(error).rstrip(':')}): remove it and download it again."
        ) from error


def _fault(member: _Member) -> str | None:
    if visible(member.name) != member.name:
        return "has characters in its name that cannot be shown"
    if not stays_inside(member.name):
        return "leaves its folder"
    return "is neither file nor folder" if member.kind == "other" else None


def _require_places(archive: Path, members: Sequence[_Member]) -> None:
    """Refuse a file in the place of a folder; of two files in one place the later one counts, as tar has it."""
    files = {_parts(member.name) for member in members if member.kind == "file"}
    folders = {_parts(member.name) for member in members if member.kind == "folder"}
    folders |= {parts[:end] for parts in files for end in range(1, len(parts))}
    for both in files & folders:
        raise DataError(
            f"archive {archive} has a member {'/'.join(both)!r:.200} that is a file and a folder: do not use it."
        )


def _require_room(archive: Path, folder: Path, size: int) -> None:
    packed = archive.stat().st_size
    if size > max(_ANY_UNPACKED, _MOST_UNPACKED * packed):
        raise DataError(
            f"archive {archive} has {packed} bytes and says that {size} are in it, as no dataset does: do not use it."
        )
    there = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    free = shutil.disk_usage(there).free
    if size > free:
        raise DataError(f"archive {archive} unpacks to {size} bytes, and {there} has {free} free: make room.")


def _copy(content: IO[bytes], file: IO[bytes], target: Path) -> None:
    while block := content.read(2**20):
        try:
            file.write(block)
        except OSError as error:
            # a full disk: the system does not say of which file
            raise OSError(error.errno, error.strerror, os.fspath(target)) from error


def _of_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    mode = stat.S_IFMT(info.external_attr >> 16)
    kind: Literal["file", "folder", "other"] = "folder" if info.is_dir() else "file"
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        kind = "other"
    return _Member(info.filename, info.file_size, kind, lambda: archive.open(info))


def _of_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    plain = isinstance(info, Member) and info.is_plain
    kind: Literal["file", "folder", "other"] = "file" if plain else "folder" if info.isdir() else "other"
    return _Member(info.name, info.size, kind, lambda: archive.extractfile(info))


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts


def _is_of_a_mac(name: str) -> bool:
    parts = _parts(name)
    return parts[0] == "__MACOSX" or parts[-1] == ".DS_Store" or parts[-1].startswith("._")
