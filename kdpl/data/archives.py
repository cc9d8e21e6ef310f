"""Files of many images, such as tar shards, and URLs: a room reads them for the core."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from kdpl.data.names import Indices, Names
from kdpl.errors import ConfigError

Shuffle = Callable[[np.random.Generator], Iterator[Indices]]
"""Draws the order of an epoch from its stream: the next images, until each came once."""


class Arranged(NamedTuple):
    """Images as training reads them, and how they are shuffled; None: as a uniform permutation."""

    sources: Sequence[str]
    shuffle: Shuffle | None = None


class Archives:
    """Reads archives, which hold many images, and URLs; this one, without a room for that, none.

    ConfigError if a URL is of a kind that cannot be opened, and DataError if something does not
    exist, is damaged or cannot be reached.
    """

    def is_one(self, path: str) -> bool:
        """Return whether a path or URL is that of an archive, by its name."""
        return False

    def unfold(self, files: Names) -> Names:
        """Put the images of each archive in its place; an archive may also be a list of files."""
        return files

    def read(self, file: str) -> Iterator[tuple[str, bytes | None, str | None]]:
        """Read an archive from beginning to end.

        Yields each image's name, and its bytes or the reason why it has none.
        """
        return iter(())

    def content(self, source: str) -> bytes:
        """Read the bytes of an image in an archive, or of a file behind a URL."""
        raise ConfigError(f"{source} needs the room shards, which was removed: give a path")

    def stamp(self, file: str) -> str:
        """Return text that changes when an archive does."""
        return ""

    def arrange(self, names: Names) -> Arranged:
        """Arrange images for training: the same ones in the same order.

        What changes is how they are read and shuffled.
        """
        return Arranged(names)

    def find(self, url: str) -> Iterator[str]:
        """Find images and archives behind a URL, which may be a pattern."""
        raise ConfigError(f"{url} needs the room shards, which was removed: give a path")


@cache
def archives() -> Archives:
    """Return what reads archives and URLs."""
    from kdpl.data.shards.archives import SHARDS

    return SHARDS
