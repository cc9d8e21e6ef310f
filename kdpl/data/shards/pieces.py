"""Pieces of a pool of shards, a few megabytes each: the unit of shuffling and reading."""

import time
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from kdpl.data.names import Arranged, Indices, Names, ShardImage, Shuffle
from kdpl.data.shards.remote import is_parquet
from kdpl.data.shards.spool import Piece

WINDOW = 64
"""Number of pieces whose images are mixed with each other."""

PIECE = 2**23
"""Bytes of images in a piece."""

_FILE = 2**17  # bytes counted for an image outside of shards
_DENSE = 0.25  # least wanted share of a read; captions may be as large as small images
_MOST = 4 * PIECE  # bytes read at once; an image may be larger


def arrange(names: Names) -> Arranged:
    """Arrange images, some of them in shards, to be read and shuffled in pieces."""
    sources = InPieces(names)
    return Arranged(sources, by_pieces(sources.starts, len(names)))


def by_pieces(starts: Indices, num_images: int) -> Shuffle | None:
    """Return ``shuffle`` of these pieces; None if they are so few that all images would mix."""
    return partial(shuffle, starts, num_images) if len(starts) > WINDOW else None


class InPiece(ShardImage):
    """Image in a shard that is read together with its piece."""

    __slots__ = ("piece",)
    piece: Piece


class InPieces(Sequence[str]):
    """Names whose shard images, when requested, come with the piece to read them with.

    A piece is a run of images in the order of the names, of about ``PIECE`` bytes. If it spans
    several shards, each part is read separately. Images outside of shards are read one by one. The
    images of a Parquet row group stay together, in a piece of several row groups, or of a single
    larger one.

    Attributes:
        starts: First image of each piece.
    """

    def __init__(self, names: Names) -> None:
        self.names, self.since = names, time.time()
        rows, at = names.rows, None
        apart = np.ones(len(rows), bool)
        # the images of a row group count once: they share offset and size
        apart[1:] = (rows["offset"][1:] == 0) | (rows["offset"][1:] != rows["offset"][:-1])
        apart[1:] |= rows["folder"][1:] != rows["folder"][:-1]
        if not apart.all():
            at = np.flatnonzero(apart)
            rows = rows[at]
        sizes = np.where(rows["offset"] > 0, rows["size"], _FILE)
        # number the pieces, in place to save memory
        piece = np.cumsum(sizes)
        piece -= sizes
        piece //= PIECE
        begins = np.diff(piece, prepend=-1) != 0
        starts = np.flatnonzero(begins)
        # split pieces into parts, each in one shard
        parts = np.flatnonzero(begins | (np.diff(rows["folder"], prepend=-1) != 0))
        self._first = np.minimum.reduceat(rows["offset"], parts)
        self._stop = np.maximum.reduceat(rows["offset"] + rows["size"], parts)
        # read a part at once if most of it is needed
        wanted, bytes_read = np.add.reduceat(rows["size"], parts), self._stop - self._first
        self.starts: Indices = starts if at is None else at[starts]
        self._parts = parts if at is None else at[parts]
        self._dense = (self._first > 0) & (wanted >= _DENSE * bytes_read) & (bytes_read <= _MOST)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # a sequence without slices
        source = self.names[index]
        if not isinstance(source, ShardImage):
            return source
        # a dense part is read at once, otherwise the image alone or its row group
        part = np.searchsorted(self._parts, index, side="right") - 1
        if self._dense[part]:
            start, stop = int(self._first[part]), int(self._stop[part])
        elif is_parquet(source.shard):
            start, stop = source.offset, source.offset + source.size
        else:
            return source
        image = InPiece(source.shard, source[len(source.shard) + 1 :], source.offset, source.size)
        image.piece = Piece(start, stop, self.since)
        return image

    def __len__(self) -> int:
        return len(self.names)


def shuffle(starts: Indices, num_images: int, rng: np.random.Generator) -> Iterator[Indices]:
    """Draw the order of images in pieces, with few pieces in use at any time.

    The pieces come in a random order, one at each turn. Each image of a piece is due after a random
    time of up to ``WINDOW`` turns, so that a batch mixes images of about ``WINDOW`` pieces.

    Yields:
        The next images of the order; in total each of 0 … N - 1 once.
    """
    sizes = np.diff(starts, append=num_images)
    order = rng.permutation(len(starts))
    times, images = np.empty(0), np.empty(0, dtype=np.int64)
    for first in range(0, len(order), WINDOW):
        # give the images of the next pieces their times
        pieces = order[first : first + WINDOW]
        last = first + len(pieces)
        new = np.concatenate(
            [np.arange(starts[piece], starts[piece] + sizes[piece]) for piece in pieces]
        )
        turns = np.repeat(np.arange(first, last), sizes[pieces])
        times, images = (
            np.append(times, turns + WINDOW * rng.random(len(new))),
            np.append(images, new),
        )
        # yield what no later piece can precede
        due = times < last
        yield images[due][np.argsort(times[due], kind="stable")]
        times, images = times[~due], images[~due]
    yield images[np.argsort(times, kind="stable")]
