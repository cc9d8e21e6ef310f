"""Tar shards in the WebDataset format: indexed once, then read one image at a time, never unpacked.

Training shuffles images and resumes in the middle of an epoch, so shards are not streamed: a view is one read of an
image's own bytes, or of the piece of its shard that ``kdpl/data/shards/pieces.py`` gives it.
"""

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, Literal

from kdpl.data.shards.spool import Piece, read_within
from kdpl.data.storage import is_below, is_image, read
from kdpl.errors import DataError, reason

UNREADABLE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, OSError)
LARGEST_IMAGE = 2**29
"""Most bytes of an image file in a shard: half a gigabyte, more than Pillow accepts undecoded."""

_LARGEST_NOTE = 2**20  # bytes of a long name or other notes before a member, which are read at once
_NOTES = b"xgXLK"  # the types of such members


class Member(tarfile.TarInfo):
    """A member of an archive from elsewhere, whose header may announce anything; tarfile's argument ``tarinfo``."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Member":
        """Read a header; tarfile.ReadError if it announces notes of over a megabyte, which would fill the memory."""
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in _NOTES and member.size > _LARGEST_NOTE):
            raise tarfile.ReadError(f"a header says that it has {member.size} bytes")
        return member

    @property
    def is_plain(self) -> bool:
        """Whether it is a file that lies in the archive as it is; a sparse one may claim any size."""
        return self.isreg() and not self.issparse()


class ShardImage(str):
    """An image in a ``shard``, as ``SHARD/member``: ``size`` bytes from ``offset`` on, read with ``piece`` if any."""

    __slots__ = ("offset", "piece", "shard", "size")
    shard: str
    offset: int
    size: int
    piece: Piece | None

    def __new__(cls, shard: str, name: str, offset: int, size: int) -> "ShardImage":
        """Create the name and attach the position."""
        member = super().__new__(cls, f"{shard}/{name}")
        member.shard, member.offset, member.size, member.piece = shard, offset, size, None
        return member

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardImage, (self.shard, self[len(self.shard) + 1 :], self.offset, self.size)

    def read(self) -> bytes:
        """Read its bytes; DataError if it is too large, or the shard is gone, cannot be reached or ends too early."""
        require_size(self, self.size)
        try:
            place = self.shard, self.offset, self.size
            content = read(*place) if self.piece is None else read_within(*place, self.piece)
        except OSError as error:
            raise DataError(f"shard {self.shard} cannot be read ({reason(error)}): restore it") from error
        if len(content) < self.size:
            raise DataError(f"shard {self.shard} ends within {self}: restore the shard that the run began with")
        return content


def open_tar(file: IO[bytes], mode: Literal["r:", "r:*"]) -> tarfile.TarFile:
    """Open a shard safely; mode ``r:*`` opens compressed ones too."""
    return tarfile.open(fileobj=file, mode=mode, tarinfo=Member)


def images_of(shard: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Members of an open shard that are images, in order; not links, hidden files and paths that leave a folder.

    A tarfile.ReadError if the shard is truncated or damaged.
    """
    while (member := shard.next()) is not None:
        # tarfile remembers all members, of which a shard may have millions
        shard.members.clear()  # type: ignore[attr-defined]
        if isinstance(member, Member) and member.is_plain and is_image(member.name) and is_below(member.name):
            yield member
    # tarfile takes a header that is truncated or damaged for the end
    if shard.fileobj is not None:
        shard.fileobj.seek(shard.offset)
        if shard.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("it continues with something that is not a member")


def require_size(name: str, size: int) -> None:
    """Refuse to read more than an image has into memory, by a DataError."""
    if size > LARGEST_IMAGE:
        raise DataError(f"image {name} has {size} bytes, expected at most {LARGEST_IMAGE}: leave it out")
