"""Parquet files with an image in each row, as bytes or as a path, read by pyarrow.

A file is read by row groups, whose images are decompressed together. A piece of
``kdpl/data/shards/pieces.py`` is one row group, or several small ones. The footer of a file lists
them, so indexing reads nothing else.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from kdpl.data.names import ROW, Indices, Names, folder_of
from kdpl.data.shards.reader import fault_of
from kdpl.data.shards.remote import open_file
from kdpl.data.storage import is_url
from kdpl.errors import DataError, KdplError, visible
from kdpl.runtime.optional import optional

LARGEST_GROUP = 2**29
"""Most bytes of images in a row group: half a gigabyte; an epoch has 64 row groups in use."""

_CONTENTS, _PATHS = ("bytes", "image", "image.bytes"), ("path", "image")
"""Preferred names of columns of each type."""

_AHEAD, _BUFFER = 2**12, 2**20  # bytes; pyarrow requests all that it needs from a store
_ROWS = 256  # converted to Python objects at a time


class ImageColumn(NamedTuple):
    """Image column of an open file.

    Attributes:
        file: The ``pyarrow.parquet.ParquetFile``.
        name: The column, or ``COLUMN.bytes`` of Hugging Face datasets.
        has_paths: Whether it has paths or URLs instead of bytes.
    """

    file: Any
    name: str
    has_paths: bool

    def all_values(self) -> Iterator[Any]:
        """Yield the value of each row; None if it has none."""
        for group in range(self.file.num_row_groups):
            yield from self.values([group])

    def values(self, groups: Sequence[int]) -> Iterator[Any]:
        """Yield the value of each row of some row groups, possibly all in memory at once."""
        # no threads of pyarrow: loaders fork their worker processes
        for batch in self.file.iter_batches(
            _ROWS, row_groups=groups, columns=[self.name], use_threads=False
        ):
            values = batch.column(0)
            yield from (values.field(0) if hasattr(values, "field") else values).to_pylist()

    def groups(self) -> tuple[Indices, Indices, Indices]:
        """Describe the row groups.

        Returns:
            For each of G row groups: the number of rows; the bytes of its images, decompressed; and
            the position of its first byte, from 1, as if the images of the file were concatenated:
            int64 [G] each.
        """
        schema, metadata = self.file.schema, self.file.metadata
        number = [schema.column(i).path for i in range(len(schema))].index(self.name)
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        rows = np.array([group.num_rows for group in groups], np.int64)
        sizes = np.array(
            [max(group.column(number).total_uncompressed_size, 1) for group in groups], np.int64
        )
        return rows, sizes, 1 + np.cumsum(sizes) - sizes


@contextmanager
def open_column(path: str) -> Iterator[ImageColumn]:
    """Open a file by path or URL and find its images, see ``ImageColumn``."""
    parquet = optional("pyarrow.parquet", path, "parquet")
    try:
        # remote: one request for row groups read together; local: less memory
        how = {"pre_buffer": True} if is_url(path) else {"buffer_size": _BUFFER}
        with open_file(path, _AHEAD) as raw, parquet.ParquetFile(raw, **how) as file:
            yield ImageColumn(file, *_find_column(path, file.schema_arrow))
    except KdplError:
        raise
    except Exception as error:  # pyarrow has many error types
        raise DataError(fault_of(path, error)) from error


def index_rows(path: str) -> Names:
    """Find the images of a file: a name for each row with its row group's position, or a path."""
    # paths are names already; otherwise only the footer is read
    with open_column(path) as column:
        if column.has_paths:
            return Names.of(_place(path, *row) for row in enumerate(column.all_values()))
        counts, sizes, starts = column.groups()
    if (largest := int(sizes.max(initial=0))) > LARGEST_GROUP:
        raise DataError(
            f"shard {path} has a row group with {largest} bytes of images, expected at most "
            f"{LARGEST_GROUP}: write it again with fewer rows in each, such as 100"
        )
    # name each row by its number, with the bytes of its row group
    names = [str(row) for row in range(int(counts.sum()))]
    rows = np.zeros(len(names), ROW)
    rows["length"] = [*map(len, names)]
    rows["start"] = np.cumsum(rows["length"]) - rows["length"]
    rows["offset"], rows["size"] = np.repeat(starts, counts), np.repeat(sizes, counts)
    return Names(np.frombuffer("".join(names).encode(), np.uint8), rows, [f"{path}/"])


def read_rows(path: str) -> Iterator[tuple[str, bytes | None, str | None]]:
    """Read a file from beginning to end, as ``read_shard`` does; a path comes without bytes."""
    try:
        with open_column(path) as column:
            for number, value in enumerate(column.all_values()):
                if not column.has_paths:
                    yield f"{path}/{number}", value or b"", None
                    continue
                try:
                    yield _place(path, number, value), None, None
                except DataError as error:
                    yield f"{path}/{number}", None, str(error)
    except DataError as error:
        yield path, None, str(error)


def pack(path: str, start: int, stop: int) -> bytes:
    """Read the row groups between ``start`` and ``stop`` into one piece, for ``unpack``.

    Returns:
        The images' bytes, concatenated; in reverse order, the end of each and 0; and the number of
        the first row.
    """
    with open_column(path) as column:
        # the row groups must be where they were when the run began
        counts, sizes, starts = column.groups()
        groups = np.flatnonzero((starts >= start) & (starts < stop) & (counts > 0))
        same = len(groups) and (starts[groups[0]], (starts + sizes)[groups[-1]]) == (start, stop)
        if column.has_paths or not same:
            raise DataError(
                f"shard {path} has other row groups than when the run began: restore it, or begin "
                "another run"
            )
        contents = [value or b"" for value in column.values(groups.tolist())]
    # pack the images, with a table of where each ends
    ends = np.cumsum([0, *map(len, contents)], dtype="<i8")
    first = counts[: groups[0]].sum().astype("<i8")
    return b"".join([*contents, ends[::-1].tobytes(), first.tobytes()])


def unpack(file: str, row: int) -> bytes:
    """Read the image of a row from a file packed by ``pack``; OSError if the file is missing."""
    with open(file, "rb", buffering=0) as packed:  # noqa: PTH123 - called for every image
        packed.seek(-8, os.SEEK_END)
        first = int.from_bytes(packed.read(8), "little")
        packed.seek(-8 * (row - first + 3), os.SEEK_END)
        stop, start = np.frombuffer(packed.read(16), "<i8").tolist()
        packed.seek(start)
        return packed.read(stop - start)


def _find_column(path: str, schema: Any) -> tuple[str, bool]:
    """Find the column of images in an Arrow schema, and whether it has paths."""
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        layouts = (types.is_binary, types.is_large_binary, types.is_binary_view)
        return any(is_one(kind) for is_one in layouts)

    def is_text(kind: Any) -> bool:
        layouts = (types.is_string, types.is_large_string, types.is_string_view)
        return any(is_one(kind) for is_one in layouts)

    # all columns that may have images
    contents, paths = list[str](), list[str]()
    for column in schema:
        inner = [*column.type] if types.is_struct(column.type) else []
        if is_bytes(column.type):
            contents.append(column.name)
        elif any(field.name == "bytes" and is_bytes(field.type) for field in inner):
            contents.append(f"{column.name}.bytes")
        elif is_text(column.type) and column.name in _PATHS:
            paths.append(column.name)
    # one of them: bytes before paths, and usual names before others
    contents = [name for name in contents if name in _CONTENTS] or contents
    for candidates in filter(None, (contents, paths)):
        if len(candidates) > 1:
            raise DataError(
                f"shard {path} has images in the columns {' and '.join(map(visible, candidates))}, "
                "expected one: write it again without the others"
            )
        return candidates[0], candidates is paths
    names = ", ".join(map(visible, schema.names)) or "none"
    raise DataError(
        f"shard {path} has no column of images but {names}: give it a column with image files as "
        "bytes, or one of the name path with paths"
    )


def _place(path: str, number: int, value: str | None) -> str:
    """Return the path or URL in a row, resolved against the file's folder."""
    if not value:
        raise DataError(f"row {number} of shard {path} has no path: fill it in, or remove the row")
    value = value.removeprefix("file://")
    if is_url(value):
        return value
    full = os.path.join(folder_of(path), os.path.expanduser(value))  # noqa: PTH118, PTH111 - for millions of rows
    return full if is_url(full) else os.path.normpath(full)
