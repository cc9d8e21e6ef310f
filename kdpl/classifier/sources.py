"""Images to classify: files, folders, patterns, lists, and shards read without unpacking."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from kdpl.data.decoding import Decoding, open_image
from kdpl.data.identity import stamp
from kdpl.data.paths import is_shard, read_list
from kdpl.data.shards import read_shard
from kdpl.data.sources import find_files, open_source
from kdpl.errors import DataError, visible
from kdpl.runtime.files import read_columns

MAX_UPLOAD_PIXELS = 50_000_000
"""Largest image that the service decodes, the size of the largest phone photos."""


class Item(NamedTuple):
    """An image before decoding: a shard's with its bytes, a file's with its stamp, or an error."""

    name: str
    content: bytes | None = None
    error: str | None = None
    stamp: Sequence[int] | None = None

    def open(self, decoding: Decoding) -> Image.Image:
        """Decode it as RGB; raises a DataError if it is missing or unreadable."""
        if self.error is not None:
            raise DataError(self.error)
        if self.content is None:
            return open_source(self.name, decoding)
        return open_image(self.name, self.content, decoding)


def find_sources(arguments: Sequence[str], list_file: Path | None = None) -> list[str]:
    """Find image files and shards, in the order given; a DataError if there are none.

    ``arguments`` are files, folders, patterns and lists as ``kdpl.data.sources.find_files``
    takes them. The ``list_file`` has one path on each line, relative to the working directory; the
    paths need not exist yet. A .csv file is a table with the column ``image``.
    """
    sources = list(find_files(arguments))
    if list_file is not None:
        is_table = list_file.suffix == ".csv"
        sources += _images_in(list_file) if is_table else read_list(list_file)
    if not sources:
        raise DataError(
            "there are no images to classify: give image files, folders, shards or a --list of them"
        )
    return sources


def _images_in(table: Path) -> list[str]:
    """Read the column image of a CSV table; a DataError if there is no such file or column."""
    columns = read_columns(table, "table", "surrogateescape") if table.is_file() else {}
    if not columns.get("image"):
        raise DataError(f"{table} is no table with rows and the column image: correct it")
    return columns["image"]


def read_items(sources: Sequence[str]) -> Iterator[Item]:
    """Yield all images; images in shards in the order of the shard."""
    for source in sources:
        if is_shard(source):
            yield from (Item(*member) for member in read_shard(source))
        else:
            yield Item(source, stamp=stamp(source))


def printable(name: str) -> str:
    """Return a path on one line; control characters and bytes but UTF-8 are escaped."""
    return visible(os.fsencode(name).decode("utf-8", "backslashreplace"))
