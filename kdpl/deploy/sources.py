"""Where images come from: files, folders, patterns, a list, and tar shards, which are read without being unpacked."""

import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from kdpl.data.decoding import open_image
from kdpl.data.folder import EXTENSIONS, find_images
from kdpl.errors import ConfigError, DataError, reason

_SHARD_ENDINGS = (".tar", ".tar.gz", ".tgz")
_UNREADABLE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, OSError)


class Item(NamedTuple):
    """An image that has still to be decoded.

    Attributes:
        name: Its path; of an image in a shard the shard's, a slash, and the member's.
        content: The bytes of an image in a shard.
        error: Why there is no image under this name, where that is known already.
    """

    name: str
    content: bytes | None = None
    error: str | None = None

    def open(self) -> Image.Image:
        """Decode it as RGB.

        Raises:
            DataError: It is missing or unreadable.
        """
        if self.error is not None:
            raise DataError(self.error)
        return open_image(self.name, self.content)


def find_sources(arguments: Sequence[str], list_file: Path | None) -> list[str]:
    """Find image files and shards, in the order given.

    Args:
        arguments: Image files, shards, folders that are searched recursively for images, and patterns such as
            ``shards/*.tar`` or ``photos/**/*.jpg``, whose matches come sorted.
        list_file: A file with the path of one image or shard on each line. That they exist is seen when they are read.

    Raises:
        DataError: An argument does not exist, or has no images.
    """
    sources: list[str] = []
    for argument in arguments:
        is_pattern = has_magic(argument) and not Path(argument).exists()
        # not Path.glob, which takes no absolute pattern
        matches = sorted(glob(argument, recursive=True)) if is_pattern else []  # noqa: PTH207
        for path in matches or [argument]:
            sources += _sources_at(path)
    if list_file is not None:
        if not list_file.is_file():
            raise DataError(f"list {list_file} does not exist: give a file with one path on each line")
        with list_file.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
            sources += [path for line in lines if (path := line.rstrip("\r\n"))]
    if not sources:
        raise DataError("there are no images to classify: give image files, folders, shards or a --list that has some")
    return sources


def part_of(sources: Sequence[str], part: str | None) -> list[str]:
    """Give one part of the sources: consecutive ones, so that all parts one after another are all sources in order.

    Args:
        sources: All sources.
        part: ``I/N``, with I from 1 to N; None for all.

    Raises:
        ConfigError: It is something else.
    """
    if part is None:
        return list(sources)
    try:
        number, count = (int(each) for each in part.split("/"))
    except ValueError:
        number = count = 0
    if not 1 <= number <= count:
        raise ConfigError(f"--part is {part}, expected I/N with I from 1 to N: give for example 1/8 to 8/8")
    start, end = (len(sources) * each // count for each in (number - 1, number))
    return list(sources[start:end])


def read_items(sources: Sequence[str]) -> Iterator[Item]:
    """Give all images one after another, those in shards in the order in which they stand there."""
    for source in sources:
        if source.lower().endswith(_SHARD_ENDINGS):
            yield from _read_shard(source)
        else:
            yield Item(source)


def count_items(sources: Sequence[str]) -> int | None:
    """How many images there are; None where shards would have to be read to know."""
    return None if any(source.lower().endswith(_SHARD_ENDINGS) for source in sources) else len(sources)


def _sources_at(path: str) -> list[str]:
    if Path(path).is_dir():
        found = find_images(Path(path))
        if not found:
            raise DataError(f"folder {path} has no images: give image files or a folder that has some")
        return found
    if not Path(path).is_file():
        raise DataError(f"image {path} does not exist: give image files, folders or shards")
    return [path]


def _read_shard(path: str) -> Iterator[Item]:
    """Read a tar archive from beginning to end; a damaged one ends with an item that says so."""
    try:
        with tarfile.open(path, "r:*") as shard:
            while (member := shard.next()) is not None:
                # tarfile remembers all members, which a shard of millions has no use for
                shard.members.clear()  # type: ignore[attr-defined]
                name = PurePosixPath(member.name)
                if not member.isreg() or name.name.startswith(".") or name.suffix.lower() not in EXTENSIONS:
                    continue
                file = shard.extractfile(member)
                if file is not None:
                    yield Item(f"{path}/{member.name}", file.read())
            _require_end(shard)
    except FileNotFoundError:
        yield Item(path, error=f"shard {path} does not exist: restore it, or leave it out")
    except _UNREADABLE as error:
        yield Item(path, error=f"shard {path} is damaged ({reason(error)}): make it again, or leave it out")


def _require_end(shard: tarfile.TarFile) -> None:
    """Refuse a shard that was cut off within a header, or garbled there, which tarfile takes for its end."""
    if shard.fileobj is not None:
        shard.fileobj.seek(shard.offset)
        if shard.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("it goes on with something that is no member")


def printable(name: str) -> str:
    """Give a path as text that any table can hold: bytes that are no UTF-8 become backslash, x and two digits."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
