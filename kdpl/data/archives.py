"""Files of many images, such as tar shards, which rooms read by entry points ``kdpl.archives``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import NamedTuple

import numpy as np

from kdpl.data.names import Indices, Names
from kdpl.runtime import plugins

Shuffle = Callable[[np.random.Generator], Iterator[Indices]]
"""Draws the order of an epoch from its stream: the next images, until each came once."""


class Pool(NamedTuple):
    """Images as training reads them, and how they are shuffled; None: as a uniform permutation."""

    sources: Sequence[str]
    shuffle: Shuffle | None = None


@dataclass(frozen=True)
class Archives:
    """One kind of files that hold many images.

    Attributes:
        is_one: Tells whether a path or URL is one, by its name.
        index: Finds the images of each of several different ones, in the order in which they lie
            there.
        read: Reads one from beginning to end: for each image its name, and its bytes or the reason
            why it has none.
        pool: Arranges images for training, at least one of which lies in such a file.
    """

    is_one: Callable[[str], bool]
    index: Callable[[Sequence[str]], Mapping[str, Names]]
    read: Callable[[str], Iterator[tuple[str, bytes | None, str | None]]]
    pool: Callable[[Names], Pool]


@cache
def _kinds() -> tuple[Archives, ...]:
    return tuple(plugins.load_all("archives").values())


def kind_of(file: str) -> Archives | None:
    """Return the kind of archives that a file is of, None for an image."""
    return next((kind for kind in _kinds() if kind.is_one(file)), None)


def unfold(files: Names) -> Names:
    """Put the images of each archive in its place."""
    members = dict[str, Names]()
    for kind in _kinds():
        if archives := [file for file in files if kind.is_one(file)]:
            members.update(kind.index(archives))
    if not members:
        return files
    parts = list[Names]()
    for in_archives, some in groupby(files, members.__contains__):
        if in_archives:
            parts += map(members.__getitem__, some)
        else:
            parts.append(Names.of(some))
    return Names.joined(parts)


def pool_of(names: Names) -> Pool:
    """Arrange images for training, as the archives ask for that the first of them lies in."""
    inside = np.flatnonzero(names.rows["offset"])
    kind = kind_of(names.folders[names.rows["folder"][inside[0]]][:-1]) if len(inside) else None
    return Pool(names) if kind is None else kind.pool(names)
