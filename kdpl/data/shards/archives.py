"""Archives of many images, tar files and Parquet files, and images behind URLs.

Training shuffles images and resumes in the middle of an epoch, so shards are not streamed: they are
indexed once, and a view is one read of an image's own bytes, or of the piece of its shard that
``kdpl/data/shards/pieces.py`` gives it.
"""

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from kdpl.data.arranged import Arranged
from kdpl.data.names import Names, ShardImage, distinct
from kdpl.data.shards import pieces, remote
from kdpl.data.shards.parquet import read_rows
from kdpl.data.shards.pieces import InPiece
from kdpl.data.shards.reader import read_shard, require_size
from kdpl.data.shards.spool import STARTED, Piece, read_row, read_within
from kdpl.errors import DataError, reason


def is_one(path: str) -> bool:
    """Return whether a path or URL is that of a shard, by its ending."""
    return remote.is_shard(path)


def unfold(files: Names) -> Names:
    """Put the images of each shard in its place, see ``index_shards``."""
    if not (shards := [file for file in files if is_one(file)]):
        return files
    # imports torch, which takes seconds
    from kdpl.data.shards.index import index_shards

    images_of = index_shards(shards)
    parts = list[Names]()
    for in_shards, some in groupby(files, images_of.__contains__):
        if in_shards:
            parts += map(images_of.__getitem__, some)
        else:
            parts.append(Names.of(some))
    images = Names.joined(parts)
    listed = any(np.any(each.rows["offset"] == 0) for each in images_of.values())
    # a shard may also list files, which may be there already
    return distinct(images) if listed else images


def read(file: str) -> Iterator[tuple[str, bytes | None, str | None]]:
    """Read a shard from beginning to end, see ``read_shard`` and ``read_rows``."""
    return read_rows(file) if remote.is_parquet(file) else read_shard(file)


def content(source: str) -> bytes:
    """Read the bytes of an image in a shard, or of a file behind a URL.

    DataError if it is too large, or the file is missing, unreachable or truncated.
    """
    if not isinstance(source, ShardImage):
        return remote.read(source)
    shard, offset, size = source.shard, source.offset, source.size
    piece = source.piece if isinstance(source, InPiece) else None
    try:
        if remote.is_parquet(shard):
            row = int(source[len(shard) + 1 :])
            return read_row(shard, row, piece or Piece(offset, offset + size, STARTED))
        require_size(source, size)
        if piece:
            found = read_within(shard, offset, size, piece)
        else:
            found = remote.read(shard, offset, size)
    except OSError as error:
        raise DataError(f"shard {shard} cannot be read ({reason(error)}): restore it") from error
    if len(found) < size:
        raise DataError(
            f"shard {shard} ends within {source}: restore the shard that the run began with"
        )
    return found


def stamp(file: str) -> str:
    """Return text that changes when a shard does."""
    return remote.stamp(file)


def arrange(names: Names) -> Arranged:
    """Arrange images for training, in pieces if some are in shards, see ``pieces.arrange``."""
    return pieces.arrange(names) if names.rows["offset"].any() else Arranged(names)


def find(url: str) -> Iterator[str]:
    """Find images and shards behind a URL, which may be a pattern."""
    return remote.find(url)
