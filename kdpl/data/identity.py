"""What an image is: its path below the common folder, its size, and the time of its last change.

Whatever is kept of images and read again compares these: of an image in a shard also its place.
Where all images are read anyway, their contents are compared instead (``kdpl.data.checked``).
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache

import numpy as np

from kdpl.data import shards
from kdpl.data.names import Indices, Names, ShardImage
from kdpl.data.paths import is_url
from kdpl.runtime.origin import digest

CONTENTS, SIZES, CHANGED = "content of images", "size of images", "last change of images"
FILES = {CONTENTS, SIZES, CHANGED}  # an origin has the first, or the two others
_AT_ONCE, _CHUNK = 32, 2**12  # threads and images; a mounted disk may be slow to answer


def digest_of(images: Sequence[str]) -> str:
    """Digest images by their paths below the common folder, so that a dataset may be moved."""
    try:
        base = os.path.commonpath({os.path.dirname(image) for image in images})  # noqa: PTH120 - any string, not a path
    except ValueError:
        base = ""  # absolute and relative paths cannot be moved together
    total = hashlib.sha256()
    for image in images:
        name = image[len(base) :].replace(os.sep, "/").lstrip("/")
        total.update(name.encode(errors="surrogateescape") + b"\0")  # a path need not be UTF-8
    return total.hexdigest()


def files_of(images: Sequence[str]) -> dict[str, str]:
    """Describe images by size and time, a system call for each; empty unless they are files."""
    names = Names.of(images)
    chunks = (names[first : first + _CHUNK] for first in range(0, len(names), _CHUNK))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        sizes, times = np.concatenate([np.empty((0, 2), np.int64), *pool.map(_stamps, chunks)]).T
    if sizes.max(initial=-1) < 0:
        return {}
    newest, places = int(times.argmax()), (names.rows["offset"], names.rows["size"])
    time = datetime.fromtimestamp(times[newest] // 10**9, UTC).isoformat(" ", "seconds")
    changed = f"{time} of {names[newest].rpartition('/')[2]} ({digest([times.tobytes()])})"
    return {CHANGED: changed, SIZES: digest(part.tobytes() for part in (sizes, *places))}


def stamp(path: str) -> list[int]:
    """Return a file's size, and the time of its last change in ns; -1 if it is missing."""
    if is_url(path):
        return shards.stamp(path)
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path is slow for millions
    except (OSError, ValueError):
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]


def _stamps(images: Names) -> Indices:
    once = cache(stamp)  # for each shard
    files = (image.shard if isinstance(image, ShardImage) else image for image in images)
    return np.array([once(file) for file in files], np.int64)
