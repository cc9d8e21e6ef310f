"""Images without labels, wherever they are, and opening any image that a dataset of one's own names."""

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from kdpl.data.decoding import open_image
from kdpl.data.readers.shards import ShardImage, index_shards
from kdpl.data.storage import is_shard, is_url, places, read, read_list, resolve
from kdpl.errors import DataError


def find_unlabeled(where: str | Sequence[str]) -> tuple[str, ...]:
    """Find the images of any number of places, in the order given, each image once.

    Args:
        where: One or several of: a folder, which is searched recursively; an image; a pattern (``photos/**/*.jpg``,
            ``shards/{000..031}.tar``); a ``.txt`` file with a path on each line, relative to the file's folder; a
            ``.tar`` shard. Any but the list may be a URL that fsspec opens. KdplError if something is missing,
            damaged or cannot be reached.

    Returns:
        Paths, URLs, and ``SHARD/member`` for an image in a shard, as ``open_source`` takes them.
    """
    files = find_files([where] if isinstance(where, str) else where)
    members = index_shards(list(dict.fromkeys(file for file in files if is_shard(file))))
    found = [source for file in files for source in members.get(file, [file])]
    if not found:
        raise DataError(f"unlabeled names no images ({where}): give a folder, a pattern, a list or shards")
    first: dict[str, str] = {}
    for at, source in zip(places(found), found, strict=True):
        first.setdefault(at, source)
    return tuple(first.values())


def find_files(where: Sequence[str]) -> list[str]:
    """Find the image files and shards of any number of places, in the order given; see ``find_unlabeled``."""
    files: list[str] = []
    for place in where:
        for file in resolve(place):
            files += _listed(Path(file)) if file.lower().endswith(".txt") and not is_url(file) else [file]
    return files


def open_source(source: str) -> Image.Image:
    """Open an image by its path, its URL, or its place in a shard, as RGB; DataError if it is missing or unreadable."""
    return open_image(source, content_of(source) if isinstance(source, ShardImage) or is_url(source) else None)


def content_of(source: str) -> bytes:
    """Read the bytes of an image file; raises as ``open_source``, and OSError."""
    return source.read() if isinstance(source, ShardImage) else read(source)


def _listed(file: Path) -> list[str]:
    lines = [line.strip() for line in read_list(file)]
    return [line if is_url(line) else os.path.normpath(file.parent / Path(line).expanduser()) for line in lines if line]
