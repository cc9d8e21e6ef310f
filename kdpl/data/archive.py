"""Unpacking archives from elsewhere: all names are looked at before anything is written."""

import gzip
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Literal, NamedTuple

from rich.console import Console
from rich.progress import track

from kdpl.data.inside import stays_inside
from kdpl.errors import DataError, reason

SUFFIX = re.compile(r"\.(zip|tar|tgz|tar\.(gz|bz2|xz))$", re.IGNORECASE)

_UNREADABLE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
)


class _Member(NamedTuple):
    """A file, a folder, or something else (a link, a device) in an archive."""

    name: str
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
        DataError: If the archive is damaged, or a member would leave the folder or is a link or a device; in the
            latter case before anything is written.
    """
    with _opened(archive) as members:
        for member in members:
            if not stays_inside(member.name):
                raise DataError(
                    f"archive {archive} has a member {member.name!r} that leaves its folder: do not use it."
                )
            if member.kind == "other":
                raise DataError(
                    f"archive {archive} has a member {member.name!r} that is neither file nor folder: do not use it."
                )
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
                    shutil.copyfileobj(content, file)


@contextmanager
def _opened(archive: Path) -> Iterator[Sequence[_Member]]:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                yield [_of_zip(zipped, info) for info in zipped.infolist()]
        else:
            with tarfile.open(archive) as tarred:
                yield [_of_tar(tarred, info) for info in tarred]
    except _UNREADABLE as error:
        raise DataError(
            f"archive {archive} is damaged ({reason(error).rstrip(':')}): remove it and download it again."
        ) from error


def _of_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    mode = stat.S_IFMT(info.external_attr >> 16)
    kind: Literal["file", "folder", "other"] = "folder" if info.is_dir() else "file"
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        kind = "other"
    return _Member(info.filename, kind, lambda: archive.open(info))


def _of_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    kind: Literal["file", "folder", "other"] = "file" if info.isreg() else "folder" if info.isdir() else "other"
    return _Member(info.name, kind, lambda: archive.extractfile(info))


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts


def _is_of_a_mac(name: str) -> bool:
    parts = _parts(name)
    return parts[0] == "__MACOSX" or parts[-1] == ".DS_Store" or parts[-1].startswith("._")
