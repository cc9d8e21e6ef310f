"""Files by path or URL, found by patterns, opened and read in part; remote ones through fsspec.

Functions that take a URL raise a ConfigError if it is of a kind that cannot be opened, and a
DataError if it does not exist or cannot be reached.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob, has_magic
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from kdpl.errors import ConfigError, DataError, reason

EXTENSIONS = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
COMPRESSED_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_BRACES = re.compile(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}")


def is_url(path: str) -> bool:
    """Return whether a path is a URL, such as ``s3://bucket/photos``."""
    return "://" in path


def is_shard(path: str) -> bool:
    """Return whether a path is that of a tar archive, by its ending."""
    return _plain(path).endswith((".tar", *COMPRESSED_ENDINGS))


def is_image(path: str) -> bool:
    """Return whether a path is that of an image that is not hidden, by its name."""
    # no Path: there are millions
    name = os.path.basename(_plain(path))  # noqa: PTH119
    return os.path.splitext(name)[1] in EXTENSIONS and not name.startswith(".")  # noqa: PTH122


def stays_inside(path: str) -> bool:
    """Return whether a relative path names something below a folder, on any system."""
    return is_below(path) and not PureWindowsPath(path).drive


def is_below(path: str) -> bool:
    """Return True if a path is relative and leads to nothing above its start.

    ``a:b`` does not lead above it, unless it is joined.
    """
    plain = path.replace("\\", "/")
    parts = PurePosixPath(plain).parts
    return bool(parts) and not plain.startswith("/") and ".." not in parts


def find_images(folder: Path) -> list[str]:
    """Find images below a folder by extension, sorted, without hidden ones; follow links once."""
    return list(_walk(str(folder), os.path.realpath(folder), set()))


def resolve(place: str) -> Iterator[str]:
    """Find image files and shards by path, URL or pattern, sorted in each folder and pattern.

    A folder is searched recursively for images; DataError if it has none. A file behind a URL is
    not looked for yet.
    """
    place = place.removeprefix("file://")
    if is_url(place):
        return (file for url in expand_braces(place) for file in _of_url(url))
    place = str(Path(place).expanduser())
    names = [place] if os.path.lexists(place) else expand_braces(place)
    return (file for name in names for file in _of_path(name))


def expand_braces(pattern: str) -> Iterator[str]:
    """Expand ``{000..031}`` and ``{a,b}`` as a shell does."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    choices = braces[1].split(",")
    if len(choices) == 1:
        first, last = braces[1].split("..")
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    for choice in choices:
        yield from expand_braces(f"{pattern[: braces.start()]}{choice}{pattern[braces.end() :]}")


def read_list(file: Path) -> list[str]:
    """Read the lines of a file without the empty ones; DataError if it does not exist."""
    if not file.is_file():
        raise DataError(f"list {file} does not exist: give a file with one path on each line")
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
        return [path for line in lines if (path := line.rstrip("\r\n"))]


def open_file(path: str) -> IO[bytes]:
    """Open a file by path or URL to read bytes from any position; OSError if that fails."""
    if not is_url(path):
        return Path(path).open("rb")
    with _store(path) as (files, name):
        file: IO[bytes] = files.open(name, "rb")
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
    """Return text that changes when a file does; empty if the file is missing.

    The text has the size and time, or what the file's store provides instead.
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


def _walk(folder: str, real: str, seen: set[str]) -> Iterator[str]:
    if real in seen:  # a link to a folder above
        return
    seen.add(real)
    # entries of folders and links alone are kept, since there may be millions of files
    names, others = list[str](), dict[str, os.DirEntry[str]]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                names.append(entry.name)
                if not entry.is_file(follow_symlinks=False):
                    others[entry.name] = entry
    for name in sorted(names):
        path, other = os.path.join(folder, name), others.get(name)  # noqa: PTH118
        if other and other.is_dir():
            inner = os.path.realpath(path) if other.is_symlink() else os.path.join(real, name)  # noqa: PTH118
            yield from _walk(path, inner, seen)
        elif is_image(name):
            yield path


def _of_path(path: str) -> Iterator[str]:
    # not Path.glob, which takes no absolute pattern
    is_pattern = has_magic(path) and not os.path.lexists(path)
    matches = sorted(glob(path, recursive=True)) if is_pattern else []  # noqa: PTH207
    for match in matches or [path]:
        if Path(match).is_file():
            yield match
        elif Path(match).is_dir():
            yield from _required(match, _walk(match, os.path.realpath(match), set()))
        else:
            raise DataError(
                f"{match} does not exist: give image files, folders, patterns or shards that do"
            )


def _of_url(url: str) -> Iterator[str]:
    is_pattern = "*" in url
    if not is_pattern and (is_shard(url) or is_image(url) or _plain(url).endswith(".txt")):
        return iter([url])

    with _store(url) as (files, name):
        urls = [
            files.unstrip_protocol(each)
            for each in sorted(files.glob(name) if is_pattern else files.find(name))
        ]
    return _required(
        url, (each for each in urls if is_image(each) or (is_pattern and is_shard(each)))
    )


def _required(place: str, images: Iterator[str]) -> Iterator[str]:
    first = next(images, None)
    if first is None:
        what = place if is_url(place) else f"folder {place}"
        raise DataError(f"{what} has no images: expected some of {', '.join(sorted(EXTENSIONS))}")
    return chain([first], images)


@contextmanager
def _store(url: str) -> Iterator[tuple[Any, str]]:
    """Yield a URL's file system and its name in it; errors in the block become DataErrors."""
    # takes a fifth of a second, which most commands have no use for
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
    except Exception as error:  # each store raises its own
        problem = f"{url} cannot be reached ({type(error).__name__}: {reason(error)})"
        raise DataError(f"{problem}: check address, network and credentials") from error


def _plain(path: str) -> str:
    # what follows a question mark in a URL is not part of the name
    return (path.partition("?")[0] if is_url(path) else path).lower()
