"""Tar shards, as the WebDataset format has them: looked through once, then read one image at a time, never unpacked.

Training draws images in any order and goes on in the middle of an epoch, so a shard is not streamed: where each image
lies is found out first, and a view of it is then one read of its own bytes.
"""

import gzip
import hashlib
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, Literal

from rich.console import Console
from rich.progress import track

from kdpl.data.inside import stays_inside
from kdpl.data.storage import COMPRESSED_ENDINGS, is_image, is_url, open_file, read, stamp
from kdpl.data.tar_members import LARGEST_IMAGE, Member
from kdpl.errors import DataError, reason
from kdpl.runtime.files import atomic_path

UNREADABLE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, OSError)

_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_AT_ONCE = 8  # shards that are looked through at a time; mostly waits for the network

_kept_in: ContextVar[tuple[Path, ...]] = ContextVar("kept_in", default=())


class ShardImage(str):
    """An image in a shard, as ``SHARD/member``, which knows where its bytes lie, also in another process.

    Attributes:
        shard: Path or URL of the shard.
        offset: Where in it the image begins.
        size: How many bytes it has.
    """

    __slots__ = ("offset", "shard", "size")

    shard: str
    offset: int
    size: int

    def __new__(cls, shard: str, name: str, offset: int, size: int) -> "ShardImage":
        """Name it."""
        member = super().__new__(cls, f"{shard}/{name}")
        member.shard, member.offset, member.size = shard, offset, size
        return member

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardImage, (self.shard, self[len(self.shard) + 1 :], self.offset, self.size)

    def read(self) -> bytes:
        """Read its bytes.

        Raises:
            DataError: The shard is gone, cannot be reached, or ends before, or this is too large for an image.
        """
        require_size(self, self.size)
        try:
            content = read(self.shard, self.offset, self.size)
        except OSError as error:
            raise DataError(f"shard {self.shard} cannot be read ({reason(error)}): restore it") from error
        if len(content) < self.size:
            raise DataError(f"shard {self.shard} ends within {self}: restore the shard that the run began with")
        return content


def open_tar(file: IO[bytes], mode: Literal["r:", "r:*"]) -> tarfile.TarFile:
    """Open a shard, compressed ones too with mode ``r:*``; its headers are refused where they would fill the memory."""
    return tarfile.open(fileobj=file, mode=mode, tarinfo=Member)


def images_of(shard: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Give the members of an open shard that are images, in their order.

    What is no plain file, hidden, or would leave a folder that the shard is unpacked in is no image.

    Args:
        shard: What ``open_tar`` gave.

    Raises:
        tarfile.ReadError: The shard was cut off or garbled.
    """
    while (member := shard.next()) is not None:
        # tarfile remembers all members, which a shard of millions has no use for
        shard.members.clear()  # type: ignore[attr-defined]
        if isinstance(member, Member) and member.is_plain and is_image(member.name) and stays_inside(member.name):
            yield member
    # one that is cut off within a header, or garbled there, tarfile takes for ended
    if shard.fileobj is not None:
        shard.fileobj.seek(shard.offset)
        if shard.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("it goes on with something that is no member")


def index_shards(shards: Sequence[str]) -> list[ShardImage]:
    """Find all images of shards, several shards at a time, under a progress bar where that is looked at.

    Raises:
        ConfigError: A URL cannot be opened.
        DataError: A shard does not exist, is compressed or damaged, or has no image.
    """
    console = Console(stderr=True)
    kept_in = _kept_in.get()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            found = pool.map(lambda shard: _index(shard, kept_in), shards)
            shown = track(
                found, "shards", len(shards), console=console, transient=True, disable=not console.is_terminal
            )
            return [member for members in shown for member in members]
        finally:
            pool.shutdown(cancel_futures=True)


def require_size(name: str, size: int) -> None:
    """Refuse to read what is too large for an image into memory.

    Raises:
        DataError: It is.
    """
    if size > LARGEST_IMAGE:
        raise DataError(f"image {name} has {size} bytes, more than an image may have ({LARGEST_IMAGE}): leave it out")


@contextmanager
def indices_kept_in(folders: Sequence[Path]) -> Iterator[None]:
    """Within the block, take what was found in distant shards from these folders, and keep it in the first of them."""
    token = _kept_in.set(tuple(folders))
    try:
        yield
    finally:
        _kept_in.reset(token)


def _index(shard: str, kept_in: Sequence[Path]) -> list[ShardImage]:
    if not is_url(shard) or not kept_in:
        return _look_through(shard)
    name = hashlib.blake2b(f"{shard}\0{stamp(shard)}".encode(), digest_size=16).hexdigest() + ".json"
    for file in (folder / name for folder in kept_in):
        if file.is_file():
            return [ShardImage(shard, *entry) for entry in json.loads(file.read_text(encoding="utf-8"))]
    members = _look_through(shard)
    entries = [(each[len(shard) + 1 :], each.offset, each.size) for each in members]
    with atomic_path(kept_in[0] / name) as temporary:
        temporary.write_text(json.dumps(entries), encoding="utf-8")
    return members


def _look_through(shard: str) -> list[ShardImage]:
    if shard.lower().endswith(COMPRESSED_ENDINGS):
        raise _compressed(shard)
    # by name: of two members of one name the later one counts, as when a shard is unpacked
    members: dict[str, ShardImage] = {}
    try:
        with open_file(shard) as file:
            if file.read(5).startswith(_MAGIC):
                raise _compressed(shard)
            file.seek(0)
            with open_tar(file, "r:") as opened:
                for member in images_of(opened):
                    members[member.name] = ShardImage(shard, member.name, member.offset_data, member.size)
    except FileNotFoundError as error:
        raise DataError(f"shard {shard} does not exist: restore it, or leave it out of unlabeled") from error
    except UNREADABLE as error:
        raise DataError(
            f"shard {shard} is damaged ({reason(error)}): make it again, or leave it out of unlabeled"
        ) from error
    if not members:
        raise DataError(f"shard {shard} has no images: leave it out of unlabeled")
    return list(members.values())


def _compressed(shard: str) -> DataError:
    return DataError(
        f"shard {shard} is compressed, so that single images cannot be read from it: unpack it to a plain .tar, whose "
        "images are compressed already"
    )
