"""Where images come from: files, folders, patterns, a list, and tar shards, which are read without being unpacked."""

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from kdpl.data.decoding import open_image
from kdpl.data.shards import UNREADABLE, images_of, open_tar, require_size
from kdpl.data.sources import find_files, open_source
from kdpl.data.storage import is_shard, open_file, read_list
from kdpl.errors import ConfigError, DataError, reason, visible


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
        return open_source(self.name) if self.content is None else open_image(self.name, self.content)


def find_sources(arguments: Sequence[str], list_file: Path | None) -> list[str]:
    """Find image files and shards, in the order given.

    Args:
        arguments: Image files, shards, folders that are searched recursively for images, patterns such as
            ``shards/{000..031}.tar`` or ``photos/**/*.jpg``, whose matches come sorted, and ``.txt`` lists, whose paths
            begin at the list's folder; any but the list may be a URL.
        list_file: A file with the path of one image or shard on each line, which begins where the command runs. That
            they exist is seen when they are read.

    Raises:
        ConfigError: A URL is of a kind that cannot be opened.
        DataError: An argument does not exist, or has no images.
    """
    sources = find_files(arguments)
    if list_file is not None:
        sources += read_list(list_file)
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
        if is_shard(source):
            yield from _read_shard(source)
        else:
            yield Item(source)


def count_items(sources: Sequence[str]) -> int | None:
    """How many images there are; None where shards would have to be read to know."""
    return None if any(map(is_shard, sources)) else len(sources)


def _read_shard(path: str) -> Iterator[Item]:
    """Read a tar archive from beginning to end; a damaged one ends with an item that says so."""
    try:
        with open_file(path) as file, open_tar(file, "r:*") as shard:
            for member in images_of(shard):
                yield _read_member(f"{path}/{member.name}", shard, member)
    except FileNotFoundError:
        yield Item(path, error=f"shard {path} does not exist: restore it, or leave it out")
    except UNREADABLE as error:
        yield Item(path, error=f"shard {path} is damaged ({reason(error)}): make it again, or leave it out")
    except DataError as error:
        yield Item(path, error=str(error))


def _read_member(name: str, shard: tarfile.TarFile, member: tarfile.TarInfo) -> Item:
    try:
        require_size(name, member.size)
    except DataError as error:
        return Item(name, error=str(error))
    content = shard.extractfile(member)
    return Item(name, content.read() if content is not None else b"")


def printable(name: str) -> str:
    """Give a path as text on one line, which any table can hold and any terminal can show.

    Bytes that are no UTF-8 become backslash, x and two digits, and control characters what Python writes for them.
    """
    return visible(os.fsencode(name).decode("utf-8", "backslashreplace"))
