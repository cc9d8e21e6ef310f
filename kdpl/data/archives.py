"""Files of many images, such as tar shards, and URLs: a room reads them for the core."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import NamedTuple, Protocol, cast

import numpy as np

from kdpl.data.names import Indices, Names
from kdpl.errors import ConfigError
from kdpl.runtime import plugins

Shuffle = Callable[[np.random.Generator], Iterator[Indices]]
"""Draws the order of an epoch from its stream: the next images, until each came once."""


class Pool(NamedTuple):
    """Images as training reads them, and how they are shuffled; None: as a uniform permutation."""

    sources: Sequence[str]
    shuffle: Shuffle | None = None


class Archives(Protocol):
    """Reads archives, which hold many images, and URLs; an entry point ``kdpl.archives``.

    ConfigError if a URL is of a kind that cannot be opened, and DataError if something does not
    exist, is damaged or cannot be reached.
    """

    def is_one(self, path: str) -> bool:
        """Return whether a path or URL is that of an archive, by its name."""
        ...

    def index(self, files: Sequence[str]) -> Mapping[str, Names]:
        """Find the images of several different archives, in the order in which they lie there."""
        ...

    def read(self, file: str) -> Iterator[tuple[str, bytes | None, str | None]]:
        """Read an archive from beginning to end.

        Yields each image's name, and its bytes or the reason why it has none.
        """
        ...

    def content(self, source: str) -> bytes:
        """Read the bytes of an image in an archive, or of a file behind a URL."""
        ...

    def stamp(self, file: str) -> str:
        """Return text that changes when an archive does."""
        ...

    def pool(self, names: Names) -> Pool:
        """Arrange images for training, at least one of which lies in an archive."""
        ...

    def find(self, url: str) -> Iterator[str]:
        """Find images and archives behind a URL, which may be a pattern."""
        ...


@cache
def archives() -> Archives | None:
    """Return what reads archives and URLs; None if there is nothing."""
    return cast(Archives | None, next(iter(plugins.load_all("archives").values()), None))


def require_archives(source: str) -> Archives:
    """Return what reads archives and URLs; a ConfigError if there is nothing."""
    if (reader := archives()) is None:
        raise ConfigError(f"{source} needs the room shards, which was removed: give a path")
    return reader


def is_archive(file: str) -> bool:
    """Return whether a file is an archive that can be read."""
    reader = archives()
    return reader is not None and reader.is_one(file)


def unfold(files: Names) -> Names:
    """Put the images of each archive in its place."""
    found = [file for file in files if is_archive(file)]
    if not found:
        return files
    members = require_archives(found[0]).index(found)
    parts = list[Names]()
    for in_archives, some in groupby(files, members.__contains__):
        if in_archives:
            parts += map(members.__getitem__, some)
        else:
            parts.append(Names.of(some))
    return Names.joined(parts)


def pool_of(names: Names) -> Pool:
    """Arrange images for training, as what reads archives asks for if some lie in one."""
    reader = archives()
    inside = reader is not None and names.rows["offset"].any()
    return reader.pool(names) if reader is not None and inside else Pool(names)
