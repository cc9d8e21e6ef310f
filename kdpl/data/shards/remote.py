"""Shards behind URLs, listed and read in parts by fsspec.

A server that does not answer is asked again for some seconds. The error then is none of an image or
shard, which could be left out.
"""

import io
import time
import zlib
from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any

from kdpl.data.paths import is_shard, is_url
from kdpl.errors import ConfigError, DataError, ServerError, reason
from kdpl.runtime.optional import optional

_TIMEOUT = 60  # seconds for an answer
_WAITS = (1, 3, 9)  # seconds between attempts
_BUFFER = 2**20  # bytes; a request takes as long as some hundred kilobytes


def find(url: str) -> Iterator[str]:
    """Find the shards of a pattern or folder of URLs, sorted, or give the URL of one."""
    if "*" not in url and is_shard(url):
        yield url
        return
    urls = _ask(url, "glob" if "*" in url else "find")
    shards = list(filter(is_shard, sorted(urls)))
    if not shards:
        raise DataError(f"{url} has no shards: expected .tar or .parquet files")
    for shard in shards:
        yield shard if is_url(shard) else f"{url.partition('://')[0]}://{shard}"


def stamp(url: str) -> list[int]:
    """Return a file's size, and the time of its last change with its ETag as the ns."""
    info = _ask(url, "info")
    time = info.get("LastModified") or info.get("mtime") or info.get("Last-Modified")
    time = parsedate_to_datetime(time) if isinstance(time, str) else time
    seconds = int(time.timestamp()) if isinstance(time, datetime) else 0
    tag = zlib.crc32(str(info.get("ETag") or info.get("etag")).encode()) % 10**9
    return [info.get("size") or 0, seconds * 10**9 + tag]


def open_file(path: str) -> IO[bytes]:
    """Open a shard by path or URL, to read from any position."""
    return io.BufferedReader(_Remote(path), _BUFFER) if is_url(path) else Path(path).open("rb")


def read(url: str, start: int, size: int) -> bytes:
    """Read up to ``size`` bytes of a file from ``start`` on."""
    content: bytes = _ask(url, "cat_file", start=start, end=start + size) if size else b""
    # a web server that ignores ranges sends the whole file
    return content if len(content) <= size else content[start : start + size]


class _Remote(io.RawIOBase):
    def __init__(self, url: str) -> None:
        self._url, self._size, self._position = url, stamp(url)[0], 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._size - self._position)
        content = read(self._url, self._position, size) if size > 0 else b""
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def _ask(url: str, method: str, **options: int) -> Any:
    optional("fsspec", url, "cloud")
    from fsspec.core import url_to_fs

    try:
        files, name = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{url} cannot be opened ({reason(error)}): pip install 'kdpl[cloud]' for s3:// and "
            "https://, gcsfs for gs://"
        ) from error
    if files.async_impl:
        options["timeout"] = _TIMEOUT
    waits = iter(_WAITS)
    while True:
        try:
            return getattr(files, method)(name, **options)
        except Exception as error:  # stores have types of errors of their own
            # of a web server that does not answer, fsspec says that the file is not found
            cause = error.__cause__
            answers = not isinstance(cause, OSError) and getattr(cause, "status", 404) == 404
            if isinstance(error, FileNotFoundError) and answers:
                raise DataError(f"{url} does not exist: check the address") from error
            wait = next(waits, None)
            if wait is None or isinstance(error, PermissionError):
                raise ServerError(
                    f"{url} cannot be reached ({reason(error)}): check address, network and "
                    "credentials, and run the command again"
                ) from error
        time.sleep(wait)
