"""Tar archives of many images (shards), such as WebDataset's, on a disk or behind a URL.

Training shuffles images and resumes in the middle of an epoch, so shards are not streamed: they are
indexed once, and a view is one read of the image's bytes. Prediction reads them from beginning to
end. Nothing is unpacked.
"""

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from kdpl.data.names import ShardImage
from kdpl.data.paths import is_image, is_url
from kdpl.data.shards import remote
from kdpl.errors import DataError, reason

LARGEST_IMAGE = 2**29
"""Largest image in a shard, in bytes: half a gigabyte, more than Pillow accepts undecoded."""

UNREADABLE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, OSError)


def content(image: ShardImage) -> bytes:
    """Read the bytes of an image in a shard; DataError if they cannot be read."""
    _require_size(image, image.size)
    try:
        if is_url(image.shard):
            data = remote.read(image.shard, image.offset, image.size)
            return _required(image, data)
        with Path(image.shard).open("rb", buffering=0) as file:
            file.seek(image.offset)
            data = file.read(image.size)
    except OSError as error:
        raise DataError(
            f"shard {image.shard} cannot be read ({reason(error)}): restore it"
        ) from error
    return _required(image, data)


def _required(image: ShardImage, data: bytes) -> bytes:
    if len(data) < image.size:
        raise DataError(
            f"shard {image.shard} ends within {image}: restore the shard that the run began with"
        )
    return data


def fault_of(shard: str, error: Exception) -> str:
    """Return the message for a shard that raised one of ``UNREADABLE``."""
    if isinstance(error, FileNotFoundError):
        return f"shard {shard} does not exist: restore it, or leave it out"
    return f"shard {shard} is damaged ({reason(error)}): make it again, or leave it out"


def images_of(shard: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield members of an open shard that are images, in order; a ReadError if it is damaged.

    Links, hidden files and paths that lead out of the folder are skipped.
    """
    while (member := shard.next()) is not None:
        # tarfile stores all members, possibly millions
        shard.members.clear()  # type: ignore[attr-defined]  # documented nowhere, but public
        # a sparse file may claim any size
        is_whole = member.isreg() and not member.issparse()
        if is_whole and is_image(member.name) and is_below(member.name):
            yield member
    # tarfile mistakes a truncated or damaged header for the end
    if shard.fileobj is not None:
        shard.fileobj.seek(shard.offset)
        if shard.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("it continues with something that is not a member")


def read_shard(path: str) -> Iterator[tuple[str, bytes | None, str | None]]:
    """Yield name and bytes of each image, or None and the reason if it is unreadable.

    The shard may be compressed. For a damaged shard, the last item has the reason.
    """
    try:
        with remote.open_file(path) as file, tarfile.open(fileobj=file, mode="r:*") as shard:
            for member in images_of(shard):
                name = f"{path}/{member.name}"
                try:
                    _require_size(name, member.size)
                except DataError as error:
                    yield name, None, str(error)
                else:
                    content = shard.extractfile(member)
                    yield name, content.read() if content is not None else b"", None
    except UNREADABLE as error:
        yield path, None, fault_of(path, error)


def _require_size(name: str, size: int) -> None:
    # before it is read into memory
    if size > LARGEST_IMAGE:
        raise DataError(
            f"image {name} has {size} bytes, expected at most {LARGEST_IMAGE}: leave it out"
        )


def is_below(path: str) -> bool:
    """Return whether a path leads to something below the folder that it starts from."""
    path = path.replace("\\", "/")
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts
