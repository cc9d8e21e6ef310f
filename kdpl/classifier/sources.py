"""Images to classify: files, folders, patterns, lists, and tar shards, which are read without unpacking them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from kdpl.data.decoding import Decoding, open_image
from kdpl.data.shards.reader import UNREADABLE, images_of, open_tar, require_size
from kdpl.data.sources import find_files, open_source
from kdpl.data.storage import is_shard, open_file, read_list
from kdpl.errors import ConfigError, DataError, reason, visible

MAX_UPLOAD_PIXELS = 50_000_000
"""Largest image that demo and service decode, as the largest photographs of telephones."""


class Item(NamedTuple):
    """An image that is not decoded yet; of one in a shard its bytes, or of an unreadable one the reason."""

    name: str
    content: bytes | None = None
    error: str | None = None

    def open(self, decoding: Decoding) -> Image.Image:
        """Decode it as RGB; raises a DataError if it is missing or unreadable."""
        if self.error is not None:
            raise DataError(self.error)
        if self.content is None:
            return open_source(self.name, decoding)
        return open_image(self.name, self.content, decoding)


def find_sources(arguments: Sequence[str], list_file: Path | None = None) -> list[str]:
    """Find image files and shards, in the order given; a DataError if there are none.

    ``arguments`` are files, folders, patterns, lists and URLs as ``kdpl.data.sources.find_files`` takes them. The
    ``list_file`` has one path on each line, relative to the working directory, which need not exist yet.
    """
    sources = list(find_files(arguments))
    if list_file is not None:
        sources += read_list(list_file)
    if not sources:
        raise DataError("there are no images to classify: give image files, folders, shards or a --list of them")
    return sources


def part_of(sources: Sequence[str], part: str | None) -> list[str]:
    """Return part ``I/N`` of the sources, of which all N in order are the sources; raises a ConfigError for others."""
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
    """Yield all images, those in shards in the order of the shard."""
    for source in sources:
        if is_shard(source):
            yield from _read_shard(source)
        else:
            yield Item(source)


def _read_shard(path: str) -> Iterator[Item]:
    """Yield the images of a tar archive; of a damaged one, last an item with the error."""
    try:
        with open_file(path) as file, open_tar(file, "r:*") as shard:
            for member in images_of(shard):
                name = f"{path}/{member.name}"
                try:
                    require_size(name, member.size)
                except DataError as error:
                    yield Item(name, error=str(error))
                else:
                    content = shard.extractfile(member)
                    yield Item(name, content.read() if content is not None else b"")
    except FileNotFoundError:
        yield Item(path, error=f"shard {path} does not exist: restore it, or leave it out")
    except UNREADABLE as error:
        yield Item(path, error=f"shard {path} is damaged ({reason(error)}): make it again, or leave it out")
    except DataError as error:
        yield Item(path, error=str(error))


def printable(name: str) -> str:
    """Return a path as text on one line; control characters, and bytes that are not UTF-8, are escaped as in Python."""
    return visible(os.fsencode(name).decode("utf-8", "backslashreplace"))
