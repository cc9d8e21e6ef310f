"""Files behind URLs through fsspec, found by patterns and read whole or in part.

Functions that take a URL raise a ConfigError if its kind is not supported, and a DataError if it
does not exist or cannot be reached.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from kdpl.data.storage import is_image, is_url, plain, required
from kdpl.errors import ConfigError, DataError, reason

COMPRESSED_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PARQUET_ENDING = ".parquet"


def is_shard(path: str) -> bool:
    """Return whether a path names a tar archive or Parquet file, by its extension."""
    return plain(path).endswith((".tar", *COMPRESSED_ENDINGS, PARQUET_ENDING))


def is_parquet(path: str) -> bool:
    """Return whether a path names a Parquet file, by its extension."""
    return plain(path).endswith(PARQUET_ENDING)


def find(url: str) -> Iterator[str]:
    """Find images and shards of a pattern, or a folder's images, or its shards if it has none."""
    is_pattern = "*" in url
    is_file = is_shard(url) or is_image(url) or plain(url).endswith(".txt")
    with _store(url) as (files, name):
        # Spark writes folders called X.parquet; web servers have no folders
        is_folder = is_parquet(url) and not url.startswith("http") and files.isdir(name)
        if is_file and not is_pattern and not is_folder:
            return iter([url])
        urls = [
            files.unstrip_protocol(path)
            for path in sorted(files.glob(name) if is_pattern else files.find(name))
        ]
    images = (match for match in urls if is_image(match) or (is_pattern and is_shard(match)))
    return required(url, images, filter(is_shard, urls))


def open_file(path: str, ahead: int | None = None) -> IO[bytes]:
    """Open a file by path or URL to read bytes from any position; OSError if that fails.

    A read behind a URL also fetches the next ``ahead`` bytes, by default a few megabytes.
    """
    if not is_url(path):
        return Path(path).open("rb")
    with _store(path) as (files, name):
        file: IO[bytes] = files.open(name, "rb", block_size=ahead)
    return file


def read(path: str, start: int = 0, size: int | None = None) -> bytes:
    """Read a file, or up to ``size`` bytes from ``start`` on; OSError as ``open_file``."""
    if not is_url(path):
        with Path(path).open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(-1 if size is None else size)
    end = None if size is None else start + size
    with _store(path) as (files, name):
        content: bytes = files.cat_file(name, start=start or None, end=end)
    # a web server that ignores ranges sends the whole file
    return content if size is None or len(content) <= size else content[start:end]


def stamp(path: str) -> str:
    """Return a text that changes when a file changes; empty if the file is missing.

    It has the file's size and time, or what its store provides instead.
    """
    try:
        if not is_url(path):
            status = Path(path).stat()
            return f"{status.st_size} {status.st_mtime_ns}"
        with _store(path) as (files, name):
            info = files.info(name)
    except (OSError, DataError):
        return ""
    keys = ("size", "ETag", "etag", "mtime", "LastModified", "created")
    return " ".join(str(info[key]) for key in keys if info.get(key) is not None)


@contextmanager
def _store(url: str) -> Iterator[tuple[Any, str]]:
    """Yield a URL's file system and its name in it; errors in the block become DataErrors."""
    # late: the import takes a fifth of a second, and most commands do not need it
    from fsspec.core import url_to_fs

    try:
        files, name = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{url} cannot be opened ({reason(error)}): install what it needs, or give a path"
        ) from error
    try:
        yield files, name
    except FileNotFoundError as error:
        raise DataError(f"{url} does not exist: check the address") from error
    except Exception as error:  # stores have different error types
        problem = f"{url} cannot be reached ({type(error).__name__}: {reason(error)})"
        raise DataError(f"{problem}: check address, network and credentials") from error
