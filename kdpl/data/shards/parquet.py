"""Parquet files with an image in each row, read by row groups.

An index is made from the footer alone. An image is named by its row, and read with its row group.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kdpl.data.names import ROW, Names, ShardImage
from kdpl.data.paths import is_url
from kdpl.data.shards import remote
from kdpl.data.shards.archives import fault_of
from kdpl.errors import DataError, KdplError, visible
from kdpl.runtime.optional import optional

LARGEST_GROUP = 2**29
"""Most bytes of images in a row group, half a gigabyte: it is read whole for each image of it."""

_USUAL = ("bytes", "image", "image.bytes")


class _Column(NamedTuple):
    name: str
    file: Any
    groups: dict[int, tuple[int, int]]  # number and size of the row group of each first row, from 1


def index_rows(path: str) -> Names:
    """Find the images of a file: each has the first row, from 1, and the size of its row group."""
    column = _opened_anew(path)
    for number, _ in column.groups.values():
        group = column.file.metadata.row_group(number)
        chunks = map(group.column, range(group.num_columns))
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == column.name)
        if size > LARGEST_GROUP:
            raise DataError(
                f"shard {path} has a row group with {size} bytes of images, expected at most "
                f"{LARGEST_GROUP}: write it again with fewer rows in each, such as 100"
            )
    counts = [size for _, size in column.groups.values()]
    names = [str(row) for row in range(sum(counts))]
    rows = np.zeros(len(names), ROW)
    rows["length"] = [*map(len, names)]
    rows["start"] = np.cumsum(rows["length"]) - rows["length"]
    rows["offset"], rows["size"] = np.repeat([*column.groups], counts), np.repeat(counts, counts)
    return Names(np.frombuffer("".join(names).encode(), np.uint8), rows, [f"{path}/"])


def content(image: ShardImage) -> bytes:
    """Read the bytes of an image; DataError if they cannot be read."""
    number, size = _opened(image.shard, os.getpid()).groups.get(image.offset, (0, 0))
    if size != image.size:
        raise DataError(
            f"shard {image.shard} has other row groups than when it was indexed: restore the "
            "shard that the run began with"
        )
    row = int(image[len(image.shard) + 1 :]) - image.offset + 1
    value: bytes | None = _read(image.shard, number, os.getpid())[row].as_py()
    return value or b""


def read_rows(path: str) -> Iterator[tuple[str, bytes | None, str | None]]:
    """Read a file from beginning to end, as ``archives.read_shard`` does."""
    try:
        for first, (number, _) in _opened_anew(path).groups.items():
            for row, value in enumerate(_read(path, number, os.getpid()), first - 1):
                yield f"{path}/{row}", value.as_py() or b"", None
    except DataError as error:
        yield path, None, str(error)


def _opened_anew(path: str) -> _Column:
    # what was open before may have been replaced
    _opened.cache_clear()
    _read.cache_clear()
    return _opened(path, os.getpid())


@lru_cache(64)
def _opened(path: str, _process: int) -> _Column:
    """Open a file for a process, which may not read from a file that it was forked with."""
    parquet = optional("pyarrow.parquet", path, "parquet")
    try:
        # pyarrow opens a path without Python's lock
        file = parquet.ParquetFile(remote.open_file(path) if is_url(path) else path)
        groups, first = {}, 1
        for number in range(file.num_row_groups):
            size = file.metadata.row_group(number).num_rows
            groups[first] = number, size
            first += size
        return _Column(_column(path, file.schema_arrow), file, groups)
    except KdplError:
        raise
    except Exception as error:  # pyarrow has many types of errors
        raise DataError(fault_of(path, error)) from error


@lru_cache(2)
def _read(path: str, number: int, process: int) -> Any:
    """Read the images of a row group; the last ones are kept, for images in order."""
    column = _opened(path, process)
    try:
        # no threads of pyarrow: loaders fork their worker processes
        group = column.file.read_row_group(number, columns=[column.name], use_threads=False)
    except KdplError:
        raise
    except Exception as error:
        raise DataError(fault_of(path, error)) from error
    values = group.column(0).combine_chunks()
    return values.field("bytes") if hasattr(values, "field") else values


def _column(path: str, schema: Any) -> str:
    """Find the column of images in an Arrow schema: bytes, or a struct that has ``bytes``."""
    from pyarrow import types

    def has_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    columns = list[str]()
    for column in schema:
        inner = [*column.type] if types.is_struct(column.type) else []
        if has_bytes(column.type):
            columns.append(column.name)
        elif any(field.name == "bytes" and has_bytes(field.type) for field in inner):
            columns.append(f"{column.name}.bytes")
    columns = [name for name in columns if name in _USUAL] or columns
    if len(columns) > 1:
        raise DataError(
            f"shard {path} has images in the columns {' and '.join(map(visible, columns))}, "
            "expected one: write it again without the others"
        )
    if not columns:
        names = ", ".join(map(visible, schema.names)) or "none"
        raise DataError(
            f"shard {path} has no column of images but {names}: give it a column with image files "
            "as bytes"
        )
    return columns[0]
