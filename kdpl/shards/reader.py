"""Tar shards, read from beginning to end without unpacking them."""

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, cast

from kdpl.data.storage import is_image
from kdpl.errors import DataError, reason
from kdpl.shards.remote import open_file

UNREADABLE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, OSError)


def fault_of(shard: str, error: Exception) -> str:
    """Return the sentence for a shard that raised one of ``UNREADABLE``."""
    if isinstance(error, FileNotFoundError):
        return f"shard {shard} does not exist: restore it, or leave it out"
    return f"shard {shard} is damaged ({reason(error)}): make it again, or leave it out"


def images_of(shard: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield members of an open shard that are images, in order.

    Links, hidden files and paths that leave a folder are left out.

    A tarfile.ReadError if the shard is truncated or damaged.
    """
    while (member := shard.next()) is not None:
        # tarfile remembers all members, of which a shard may have millions
        shard.members.clear()  # type: ignore[attr-defined]  # documented nowhere, but public
        first, *folders = member.name.replace("\\", "/").split("/")
        is_below = first and ".." not in (first, *folders)
        # a sparse file may claim any size
        if member.isreg() and not member.issparse() and is_image(member.name) and is_below:
            yield member
    # tarfile takes a header that is truncated or damaged for the end
    if shard.fileobj is not None:
        shard.fileobj.seek(shard.offset)
        if shard.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("it continues with something that is not a member")


def read_shard(path: str) -> Iterator[tuple[str, bytes | None, str | None]]:
    """Read name and bytes of each image, or the reason if it is unreadable.

    For a damaged shard, the last item gives the reason.
    """
    try:
        with open_file(path) as file, tarfile.open(fileobj=file) as shard:
            for member in images_of(shard):
                content = cast(IO[bytes], shard.extractfile(member))
                yield f"{path}/{member.name}", content.read(), None
    except UNREADABLE as error:
        yield path, None, fault_of(path, error)
    except DataError as error:
        yield path, None, str(error)
