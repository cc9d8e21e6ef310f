"""Tar shards, read from beginning to end without unpacking them."""

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Literal

from kdpl.data.shards.remote import open_file
from kdpl.data.storage import is_image
from kdpl.errors import DataError, reason

LARGEST_IMAGE = 2**29
"""Largest image in a shard, in bytes: half a gigabyte, more than Pillow accepts undecoded."""

UNREADABLE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, OSError)


def fault_of(shard: str, error: Exception) -> str:
    """Return the message for a shard that raised one of ``UNREADABLE``."""
    if isinstance(error, FileNotFoundError):
        return f"shard {shard} does not exist: restore it, or leave it out"
    return f"shard {shard} is damaged ({reason(error)}): make it again, or leave it out"


def open_tar(file: IO[bytes], mode: Literal["r:", "r:*"]) -> tarfile.TarFile:
    """Open a shard; mode ``r:*`` opens compressed ones too."""
    return tarfile.open(fileobj=file, mode=mode)


def images_of(shard: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield members of an open shard that are images, in order.

    Links, hidden files and paths that lead out of the folder are skipped.

    A tarfile.ReadError if the shard is truncated or damaged.
    """
    while (member := shard.next()) is not None:
        # tarfile stores all members, possibly millions
        shard.members.clear()  # type: ignore[attr-defined]  # documented nowhere, but public
        # a sparse file may claim any size
        if (
            member.isreg()
            and not member.issparse()
            and is_image(member.name)
            and _is_below(member.name)
        ):
            yield member
    # tarfile mistakes a truncated or damaged header for the end
    if shard.fileobj is not None:
        shard.fileobj.seek(shard.offset)
        if shard.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("it continues with something that is not a member")


def read_shard(path: str) -> Iterator[tuple[str, bytes | None, str | None]]:
    """Yield name and bytes of each image, or None and the reason if it is unreadable.

    For a damaged shard, the last item has the reason.
    """
    try:
        with open_file(path) as file, open_tar(file, "r:*") as shard:
            for member in images_of(shard):
                name = f"{path}/{member.name}"
                try:
                    require_size(name, member.size)
                except DataError as error:
                    yield name, None, str(error)
                else:
                    content = shard.extractfile(member)
                    yield name, content.read() if content is not None else b"", None
    except UNREADABLE as error:
        yield path, None, fault_of(path, error)
    except DataError as error:
        yield path, None, str(error)


def require_size(name: str, size: int) -> None:
    """Raise a DataError for an image of implausible size, before it is read into memory."""
    if size > LARGEST_IMAGE:
        raise DataError(
            f"image {name} has {size} bytes, expected at most {LARGEST_IMAGE}: leave it out"
        )


def _is_below(path: str) -> bool:
    """Return whether a path is relative and stays below its start."""
    path = path.replace("\\", "/")
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts
