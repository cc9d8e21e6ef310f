"""Shards: tar archives and Parquet files of many images, on a disk or behind a URL.

Training reads images in any order, so shards are indexed once, and an image is one read of its
bytes, or of its row group in a Parquet file. Prediction reads shards from beginning to end.
"""

import os
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from itertools import count, groupby
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from fsspec.core import url_to_fs

from kdpl.data.names import Names, ShardImage
from kdpl.data.parallel import progress_bar
from kdpl.data.paths import COMPRESSED_ENDINGS, is_below, is_image, is_parquet, is_shard, is_url
from kdpl.errors import ConfigError, DataError, KdplError, reason, visible
from kdpl.runtime.files import atomic_path
from kdpl.runtime.optional import optional
from kdpl.runtime.origin import digest

LARGEST = 2**29  # bytes of an image in a tar archive, or of a row group in a Parquet file


@contextmanager
def _located(shard: str) -> Iterator[tuple[Any, str]]:
    """Give the file system of a shard and its name there; their errors become sentences."""
    try:
        files, name = url_to_fs(shard)
    except (ImportError, ValueError) as error:
        problem = f"{shard} cannot be opened ({reason(error)})"
        raise ConfigError(f"{problem}: for s3://, pip install 'kdpl[cloud]'") from error
    try:
        yield files, name
    except KdplError:
        raise
    except Exception as error:  # stores have types of errors of their own
        is_missing = isinstance(error, FileNotFoundError)
        state = "does not exist" if is_missing else f"cannot be read ({reason(error)})"
        if not is_url(shard) or isinstance(error, tarfile.TarError | EOFError | ValueError):
            raise DataError(f"shard {shard} {state}: restore it, or leave it out") from error
        # no DataError: an image is not left out because its server does not answer
        remedy = "check address, network and credentials, and run the command again"
        raise KdplError(f"shard {shard} {state}: {remedy}") from error


def find(url: str) -> list[str]:
    """Find the shards of a pattern or folder of URLs, sorted, or give the URL of one."""
    if "*" not in url and is_shard(url):
        return [url]
    with _located(url) as (files, name):
        found = files.glob(name) if "*" in url else files.find(name)
    shards = sorted(filter(is_shard, map(files.unstrip_protocol, found)))
    if not shards:
        raise DataError(f"{url} has no shards: expected .tar or .parquet files")
    return shards


def stamp(shard: str) -> list[int]:
    """Return the size of a shard, and the time of its last change in ns, mixed with its ETag."""
    with _located(shard) as (files, name):
        info = files.info(name)
    time = info.get("LastModified") or info.get("mtime") or info.get("Last-Modified") or 0
    time = parsedate_to_datetime(time) if isinstance(time, str) else time
    seconds = time.timestamp() if isinstance(time, datetime) else time
    tag = zlib.crc32(str(info.get("ETag") or info.get("etag")).encode()) % 10**9
    return [info.get("size") or 0, int(seconds * 10**9) + tag]


def unfold(files: Names) -> Names:
    """Replace each shard by its images, in their order in it."""
    shards = list(filter(is_shard, files))
    # several at a time: a server or a mounted disk may be slow to answer
    with ThreadPoolExecutor(8) as pool, progress_bar() as progress:
        indices = progress.track(pool.map(_index, shards), len(shards), description="shards")
        images_of = dict(zip(shards, indices, strict=True))
    return Names.joined(found or Names.of(group) for found, group in groupby(files, images_of.get))


def _index(shard: str) -> Names:
    """Find the images of a shard; the user's cache keeps them until the shard changes."""
    place = shard if is_url(shard) else os.path.abspath(shard)  # noqa: PTH100 - Path is for no URL
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kdpl" / "shards"
    file, current = cache / f"{digest([place])}.npz", stamp(shard)
    # a missing or damaged index is made again
    with suppress(OSError, ValueError, LookupError, EOFError, BadZipFile), np.load(file) as kept:
        if kept["stamp"].tolist() == current:
            return Names(kept["text"], kept["rows"], [f"{shard}/"])
    images = Names.of(_find_rows(shard) if is_parquet(shard) else _find_members(shard))
    if not images:
        raise DataError(f"shard {shard} has no images: leave it out of unlabeled")
    # the cache may be read-only or full
    with suppress(OSError), atomic_path(file) as temporary, temporary.open("wb") as opened:
        np.savez(opened, stamp=current, text=images.text, rows=images.rows)
    return images


def content(image: ShardImage) -> bytes:
    """Read the bytes of an image; DataError if they cannot be read."""
    with _located(image.shard) as (files, name):
        if is_parquet(image.shard):
            rows = _read_group(image.shard, image.offset - 1, os.getpid())
            return rows[image.size].as_py() or b""
        end = image.offset + image.size
        found: bytes = files.cat_file(name, start=image.offset, end=end) if image.size else b""
    if len(found) != image.size:
        raise DataError(f"shard {image.shard} lacks bytes of {image}: restore it as it was")
    return found


def read_shard(shard: str) -> Iterator[tuple[str, bytes | None, str | None]]:
    """Yield name and bytes of each image, and at the end of a damaged shard None and the reason."""
    try:
        if is_parquet(shard):
            yield from ((row, content(row), None) for row in _find_rows(shard))
        else:
            yield from ((f"{shard}/{m.name}", data, None) for m, data in _members(shard, read=True))
    except DataError as error:
        yield shard, None, str(error)


def _find_members(shard: str) -> Iterator[ShardImage]:
    if shard.lower().endswith(COMPRESSED_ENDINGS):
        raise DataError(f"shard {shard} is compressed: only a plain .tar can be read in parts")
    images = (ShardImage(shard, m.name, m.offset_data, m.size) for m, _ in _members(shard, False))
    # of two members of one name, the later counts, as when a shard is unpacked
    return iter({image: image for image in images}.values())


def _members(shard: str, read: bool) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield images but links and paths out of the archive, and the bytes if it is ``read``."""
    with (
        _located(shard) as (files, name),
        files.open(name) as file,
        tarfile.open(fileobj=file, mode="r:*" if read else "r:") as archive,
    ):
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # possibly millions
            # a sparse file may claim any size
            is_whole = member.isreg() and not member.issparse()
            if is_whole and is_image(member.name) and is_below(member.name):
                if member.size > LARGEST:
                    raise tarfile.ReadError(f"{member.name} has more than {LARGEST} bytes")
                opened = archive.extractfile(member) if read else None
                yield member, opened.read() if opened else b""
        # tarfile mistakes a truncated or damaged header for the end
        end: Any = archive.fileobj
        end.seek(archive.offset)
        if end.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("it continues with something that is not a member")


def _find_rows(shard: str) -> Iterator[ShardImage]:
    """Yield images named by row; offset and size are the row group, from 1, and the row in it."""
    # what was open before may have been replaced
    _opened.cache_clear()
    _read_group.cache_clear()
    groups, rows = _opened(shard, os.getpid())[0].metadata, count()
    for number in range(groups.num_row_groups):
        group = groups.row_group(number)
        if group.total_byte_size > LARGEST:
            raise DataError(f"shard {shard} has a row group above {LARGEST} bytes: split it")
        for place in range(group.num_rows):
            yield ShardImage(shard, str(next(rows)), number + 1, place)


@lru_cache(2)  # for images in order
def _read_group(shard: str, number: int, process: int) -> Any:
    file, column = _opened(shard, process)
    # no threads of pyarrow: loaders fork their worker processes
    return file.read_row_group(number, [column], use_threads=False).flatten().column(0)


@lru_cache(64)
def _opened(shard: str, _process: int) -> tuple[Any, str]:
    """Open a Parquet file for one process; its images are bytes, or the bytes of structs."""
    pyarrow = optional("pyarrow.parquet", shard, "parquet")
    with _located(shard) as (files, name):
        file = pyarrow.ParquetFile(name, filesystem=files)
    columns = list[str]()
    for leaf in map(file.schema.column, range(len(file.schema))):
        is_bytes = leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "NONE"
        if is_bytes and "." not in leaf.path.removesuffix(".bytes"):
            columns.append(leaf.path)
    columns = [path for path in columns if path in ("bytes", "image", "image.bytes")] or columns
    if len(columns) != 1:
        names = ", ".join(map(visible, columns or file.schema_arrow.names))
        problem = f"shard {shard} has {len(columns)} columns of images, of the columns {names}"
        raise DataError(f"{problem}: give it one column with image files as bytes")
    return file, columns[0]
