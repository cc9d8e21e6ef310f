"""Unlabelled images from any location, and opening of any image that a user's dataset names."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from kdpl.data import shards
from kdpl.data.decoding import Decoding, open_image
from kdpl.data.names import Names, ShardImage, distinct
from kdpl.data.paths import expand_braces, is_shard, is_url, read_list, resolve
from kdpl.data.splits import Reader
from kdpl.errors import ConfigError, DataError


@dataclass
class OwnImages(Reader):
    """A user's dataset; the settings are as in ``DomainDataModule``.

    A subclass applies them in ``read``, but for ``background``, which ``open_source`` applies.
    """

    root: str
    unlabeled: str | Sequence[str] | None = None
    class_names: str | None = None
    class_text: str | None = None
    background: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.background is not None:
            try:
                red, green, blue = self.background
                self.decoding = Decoding((red, green, blue))
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"background is {self.background!r:.100}, expected three numbers from 0 to "
                    "255: give for example [255, 255, 255], which is white"
                ) from error

    @property
    def open_source(self) -> Callable[[str], Image.Image]:
        """Function that opens an image of the dataset."""
        return partial(open_source, decoding=self.decoding)


def find_unlabeled(where: str | Sequence[str]) -> Names:
    """Find the images of any number of locations, in the order given, each image once.

    Args:
        where: One or several of: a folder, searched recursively; an image; a pattern
            (``photos/**/*.jpg``, ``shards/{000..031}.tar``); a ``.txt`` file with a path on each
            line, relative to the file's folder; a ``.tar`` or ``.parquet`` shard, or a folder of
            shards without image files; shards may be URLs that fsspec opens. DataError if
            something is missing or damaged.

    Returns:
        Paths, and ``SHARD/member`` for an image in a shard, as ``open_source`` takes them;
        in a Parquet file the member is the number of the row, from 0.
    """
    images = distinct(Names.of(find_files([where] if isinstance(where, str) else where)))
    if any(map(is_shard, images)):
        images = shards.unfold(images)
    if not images:
        raise DataError(
            f"unlabeled names no images ({where}): give a folder, a pattern, a list or shards"
        )
    return images


def find_files(where: Sequence[str]) -> Iterator[str]:
    """Find image files and shards of several locations, in order; see ``find_unlabeled``."""
    for path in where:
        if is_url(path):
            for url in expand_braces(path):
                yield from shards.find(url)
            continue
        for file in resolve(path):
            if not file.lower().endswith(".txt"):
                yield file
                continue
            # paths are relative to the list's folder
            list_file = Path(file)
            for line in map(str.strip, read_list(list_file)):
                if is_url(line):
                    yield line
                elif line:
                    yield os.path.normpath(list_file.parent / Path(line).expanduser())


def open_source(source: str, decoding: Decoding = Decoding()) -> Image.Image:
    """Open an image by path or name in a shard, as RGB."""
    content = content_of(source) if isinstance(source, ShardImage) else None
    return open_image(source, content, decoding)


def content_of(source: str) -> bytes:
    """Read the bytes of an image file; DataError if it is missing or unreadable."""
    if isinstance(source, ShardImage):
        return shards.content(source)
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise DataError(
            f"image {source} cannot be read ({error.strerror or error}): restore the file, or go "
            "on without it"
        ) from error
