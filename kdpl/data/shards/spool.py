"""Reading a piece of a file for many images at once, shared by all processes of a machine.

Each process reads a whole piece of a local file into the system's page cache. A piece behind a URL
is downloaded, and a piece of a Parquet file decompressed, by one process into a folder of temporary
files, where the oldest make room for new ones.
"""

import getpass
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from kdpl.data.shards.parquet import pack, unpack
from kdpl.data.shards.remote import is_parquet, read
from kdpl.data.storage import is_url
from kdpl.errors import DataError, reason

MOST_PIECES = 256
"""Number of pieces kept in files, and of fetched pieces that a process remembers."""

STARTED = time.time()
"""Start time of this process, or of the process that it was forked from."""

_IN_USE, _ROOM = 96, 2**31  # pieces kept beyond this number of bytes
_LOCKS = 64  # enough that pieces rarely wait for each other
_STEP = 2**20  # bytes that fit into a processor's cache


class Piece(NamedTuple):
    """Bytes ``start`` to ``stop`` of a file, read ``since`` a time in seconds of ``time.time``."""

    start: int
    stop: int
    since: float


def read_within(path: str, start: int, size: int, piece: Piece) -> bytes:
    """Read bytes of a file within a piece, fetching the piece if missing; raises as ``read``."""
    return _read_from(path, piece, lambda file, first: read(file, start - first, size))


def read_row(path: str, row: int, piece: Piece) -> bytes:
    """Read the image in a row of a Parquet file, whose pieces are whole row groups."""
    return _read_from(path, piece, lambda file, _: unpack(file, row))


def _read_from(path: str, piece: Piece, read_file: Callable[[str, int], bytes]) -> bytes:
    try:
        return read_file(*_fetched(path, piece))
    except FileNotFoundError:
        _fetched.cache_clear()  # the piece made room for others
    return read_file(*_fetched(path, piece))


@lru_cache(MOST_PIECES)
def _fetched(path: str, piece: Piece) -> tuple[str, int]:
    """Return the file that holds a piece from now on, and its start's position in ``path``."""
    # a local file: read it into the page cache
    if not is_url(path) and not is_parquet(path):
        left, buffer = piece.stop - piece.start, memoryview(bytearray(_STEP))
        with Path(path).open("rb", buffering=0) as shard:
            shard.seek(piece.start)
            while left > 0 and (count := shard.readinto(buffer[:left])):
                left -= count
        return path, 0
    # others: one process fetches the piece, and the rest wait
    name = hashlib.blake2b(
        f"{path}\0{piece[:2]}".encode(errors="surrogateescape"), digest_size=16
    ).hexdigest()
    folder = _folder()
    file = folder / f"{name}.piece"
    with FileLock(folder / f"{int(name, 16) % _LOCKS}.lock"):
        # a piece left by an earlier run may be outdated
        if not (file.exists() and file.stat().st_mtime >= piece.since):
            if is_parquet(path):
                _write(file, pack(path, piece.start, piece.stop))
            else:
                _write(file, read(path, piece.start, piece.stop - piece.start))
    return str(file), piece.start


def _folder() -> Path:
    """Return this user's folder of temporary files."""
    # a user in a container may have no name
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    folder = Path(tempfile.gettempdir()) / f"kdpl-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if isinstance(user, int) and folder.stat().st_uid != user:
        raise DataError(f"{folder} belongs to another user: set TMPDIR to another folder")
    return folder


def _write(file: Path, content: bytes) -> None:
    # make room: remove the oldest pieces
    kept = []
    for other in file.parent.glob("*.p*"):  # including .part files of interrupted processes
        with suppress(OSError):  # another process may make room, too
            status = other.stat()
            kept.append((status.st_mtime, status.st_size, other))
    total = len(content)
    for number, (_, size, other) in enumerate(sorted(kept, reverse=True), start=1):
        total += size
        if number >= MOST_PIECES or (number >= _IN_USE and total > _ROOM):
            with suppress(OSError):
                other.unlink()
    # write to a temporary name, and rename
    part = file.with_suffix(".part")
    try:
        part.write_bytes(content)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        problem = f"{file.parent} cannot hold pieces of shards ({reason(error)})"
        raise DataError(
            f"{problem}: set TMPDIR to a folder with room for {MOST_PIECES} times 8 MB, or for "
            f"{_IN_USE} row groups of Parquet files that are larger"
        ) from error
