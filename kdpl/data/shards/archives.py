"""Archives of many images (tar and Parquet files), and images behind URLs.

Training shuffles images and resumes in the middle of an epoch, so shards are not streamed: they are
indexed once, and a view is one read of the image's bytes, or of the piece of its shard that
``kdpl/data/shards/pieces.py`` assigns to it.
"""

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from kdpl.data.names import Arranged, Names, ShardImage, distinct
from kdpl.data.shards import pieces, remote
from kdpl.data.shards.parquet import read_rows
from kdpl.data.shards.pieces import InPiece
from kdpl.data.shards.reader import read_shard, require_size
from kdpl.data.shards.spool import STARTED, Piece, read_row, read_within
from kdpl.errors import DataError, reason


def is_one(path: str) -> bool:
    """Return whether a path or URL names a shard, by its extension."""
    return remote.is_shard(path)


def unfold(files: Names) -> Names:
    """Replace each shard by its images, see ``index_shards``."""
    if not (shards := [file for file in files if is_one(file)]):
        return files
    # imported late: torch takes seconds
    from kdpl.data.shards.index import index_shards

    images_of = index_shards(shards)
    # keep the order, with runs of files between shards in one part
    parts = list[Names]()
    for in_shards, group in groupby(files, images_of.__contains__):
        if in_shards:
            parts += map(images_of.__getitem__, group)
        else:
            parts.append(Names.of(group))
    images = Names.joined(parts)
    # a shard may also list files that occur elsewhere
    listed = any(np.any(names.rows["offset"] == 0) for names in images_of.values())
    return distinct(images) if listed else images


def read(file: str) -> Iterator[tuple[str, bytes | None, str | None]]:
    """Read a shard from beginning to end, see ``read_shard`` and ``read_rows``."""
    return read_rows(file) if remote.is_parquet(file) else read_shard(file)


def content(source: str) -> bytes:
    """Read the bytes of an image in a shard, or of a file behind a URL."""
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
            data = read_within(shard, offset, size, piece)
        else:
            data = remote.read(shard, offset, size)
    except OSError as error:
        raise DataError(f"shard {shard} cannot be read ({reason(error)}): restore it") from error
    if len(data) < size:
        raise DataError(
            f"shard {shard} ends within {source}: restore the shard that the run began with"
        )
    return data


def stamp(file: str) -> str:
    """Return a text that changes when a shard changes."""
    return remote.stamp(file)


def arrange(names: Names) -> Arranged:
    """Arrange images for training, in pieces if any are in shards, see ``pieces.arrange``."""
    return pieces.arrange(names) if names.rows["offset"].any() else Arranged(names)


def find(url: str) -> Iterator[str]:
    """Find images and shards behind a URL or a pattern of URLs."""
    return remote.find(url)
