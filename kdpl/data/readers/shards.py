"""Tar shards in the WebDataset format: indexed once, then read one image at a time, never unpacked.

Training draws images in any order and resumes in the middle of an epoch, so shards are not streamed: a view is one
read of an image's own bytes. The index of a distant shard is kept in ``$XDG_CACHE_HOME/kdpl/shards``, by default in
``~/.cache``.
"""

import contextlib
import gzip
import hashlib
import json
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Literal

from rich.console import Console
from rich.progress import track

from kdpl.data.storage import COMPRESSED_ENDINGS, is_image, is_url, open_file, read, stamp, stays_inside
from kdpl.errors import DataError, reason
from kdpl.runtime.files import atomic_path

UNREADABLE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, OSError)
LARGEST_IMAGE = 2**29
"""Most bytes of an image file in a shard: half a gigabyte, more than Pillow accepts undecoded."""

_LARGEST_NOTE = 2**20  # bytes of a long name or other notes before a member, which are read at once
_NOTES = b"xgXLK"  # the types of such members
_AT_ONCE = 8  # shards that are indexed at a time; mostly waits for the network


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
    """An image in a ``shard``, as ``SHARD/member``: ``size`` bytes from ``offset`` on."""

    __slots__ = ("offset", "shard", "size")
    shard: str
    offset: int
    size: int

    def __new__(cls, shard: str, name: str, offset: int, size: int) -> "ShardImage":
        """Create the name and attach the position."""
        member = super().__new__(cls, f"{shard}/{name}")
        member.shard, member.offset, member.size = shard, offset, size
        return member

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardImage, (self.shard, self[len(self.shard) + 1 :], self.offset, self.size)

    def read(self) -> bytes:
        """Read its bytes; DataError if it is too large, or the shard is gone, cannot be reached or ends too early."""
        require_size(self, self.size)
        try:
            content = read(self.shard, self.offset, self.size)
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
        if isinstance(member, Member) and member.is_plain and is_image(member.name) and stays_inside(member.name):
            yield member
    # tarfile takes a header that is truncated or damaged for the end
    if shard.fileobj is not None:
        shard.fileobj.seek(shard.offset)
        if shard.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("it continues with something that is not a member")


def index_shards(shards: Sequence[str]) -> dict[str, list[ShardImage]]:
    """Find all images of shards; DataError if a shard does not exist, is compressed or damaged, or has no image."""
    console = Console(stderr=True)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(_index, shards)
        shown = track(found, "shards", len(shards), console=console, transient=True, disable=not console.is_terminal)
        return dict(zip(shards, shown, strict=True))


def require_size(name: str, size: int) -> None:
    """Refuse to read more than an image has into memory, by a DataError."""
    if size > LARGEST_IMAGE:
        raise DataError(f"image {name} has {size} bytes, expected at most {LARGEST_IMAGE}: leave it out")


def _index(shard: str) -> list[ShardImage]:
    if not is_url(shard):
        return _look_through(shard)
    key = hashlib.blake2b(f"{shard}\0{stamp(shard)}".encode(), digest_size=16).hexdigest()
    file = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "kdpl" / "shards" / f"{key}.json"
    if file.is_file():
        return [ShardImage(shard, *entry) for entry in json.loads(file.read_text(encoding="utf-8"))]
    members = _look_through(shard)
    with contextlib.suppress(OSError), atomic_path(file) as temporary:
        entries = [(each[len(shard) + 1 :], each.offset, each.size) for each in members]
        temporary.write_text(json.dumps(entries), encoding="utf-8")
    return members


def _look_through(shard: str) -> list[ShardImage]:
    # by name: of two members of one name the later one counts, as when a shard is unpacked
    members: dict[str, ShardImage] = {}
    if shard.lower().endswith(COMPRESSED_ENDINGS):
        raise DataError(f"shard {shard} is compressed, which hides single images: make it a plain .tar")
    try:
        with open_file(shard) as file, open_tar(file, "r:") as opened:
            for member in images_of(opened):
                members[member.name] = ShardImage(shard, member.name, member.offset_data, member.size)
    except FileNotFoundError as error:
        raise DataError(f"shard {shard} does not exist: restore it, or leave it out of unlabeled") from error
    except UNREADABLE as error:
        raise DataError(f"shard {shard} is damaged ({reason(error)}): make it again, or leave it out") from error
    if not members:
        raise DataError(f"shard {shard} has no images: leave it out of unlabeled")
    return list(members.values())
