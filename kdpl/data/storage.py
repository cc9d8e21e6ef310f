"""Files by path or by URL: named by patterns, opened, and read in part; what is not on this machine through fsspec."""

import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from kdpl.errors import ConfigError, DataError, KdplError, reason

EXTENSIONS = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
COMPRESSED_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SHARD_ENDINGS = (".tar", *COMPRESSED_ENDINGS)

_BRACES = re.compile(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}")


def is_url(path: str) -> bool:
    """Whether a path is a URL, such as ``s3://bucket/photos`` or ``https://host/shard.tar``."""
    return "://" in path


def is_shard(path: str) -> bool:
    """Whether a path is that of a tar archive, by its ending."""
    return _plain(path).endswith(SHARD_ENDINGS)


def is_image(path: str) -> bool:
    """Whether a path is that of an image that is not hidden, by its name."""
    name = PurePosixPath(_plain(path)).name
    return PurePosixPath(name).suffix in EXTENSIONS and not name.startswith(".")


def find_images(folder: Path) -> list[str]:
    """Paths of all images below a folder, sorted, hidden ones left out.

    Files count as images by their extension, in any case. Links are followed; a folder reached twice is read once.
    """
    return list(_walk(str(folder), set()))


def resolve(place: str) -> list[str]:
    """Find what a path, a URL or a pattern names: image files and shards, sorted within each folder and pattern.

    Args:
        place: A file, a folder, which is searched recursively for images, or a pattern of either: ``photos/**/*.jpg``,
            ``shards/{000..031}.tar``, ``{cats,dogs}/*.png``. That a file behind a URL exists is seen when it is read.

    Raises:
        ConfigError: A URL of a kind that fsspec does not know, or needs another package for.
        DataError: It does not exist, cannot be reached, or has no images.
    """
    place = _local(place)
    names = [place] if _exists(place) else list(_expanded(place))
    return [file for name in names for file in (_of_url(name) if is_url(name) else _of_path(name))]


def read_list(file: Path) -> list[str]:
    """Give the lines of a file, as they are; empty ones are left out.

    Raises:
        DataError: It does not exist.
    """
    if not file.is_file():
        raise DataError(f"list {file} does not exist: give a file with one path on each line")
    # some editors of Windows begin a file with a mark
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
        return [path for line in lines if (path := line.rstrip("\r\n"))]


def open_file(path: str) -> IO[bytes]:
    """Open a file to read bytes; one behind a URL can be sought in as well.

    Raises:
        ConfigError: As for ``resolve``.
        DataError: A URL cannot be reached.
        OSError: A file does not exist, or may not be read.
    """
    if not is_url(path):
        return Path(path).open("rb")
    files, name = _filesystem(path)
    return cast(IO[bytes], _reached(path, lambda: files.open(name, "rb")))


def read(path: str, start: int = 0, size: int | None = None) -> bytes:
    """Read a file, or ``size`` bytes of it from ``start`` on; fewer where it ends before.

    Raises:
        ConfigError: As for ``resolve``.
        DataError: A URL cannot be reached.
        OSError: A file does not exist, or may not be read.
    """
    if not is_url(path):
        with Path(path).open("rb") as file:
            file.seek(start)
            return file.read(-1 if size is None else size)
    files, name = _filesystem(path)
    if size is None:
        return cast(bytes, _reached(path, lambda: files.cat_file(name)))
    content = cast(bytes, _reached(path, lambda: files.cat_file(name, start=start, end=start + size)))
    # a web server that knows no ranges sends the whole file
    return content[start : start + size] if len(content) > size else content


def places(paths: Iterable[str]) -> Iterator[str]:
    """Give for each path what is the same for all names of its file: from the root, from here, or through a link.

    A URL stands for itself.
    """
    real_folder = cache(os.path.realpath)  # asked once for all files of a folder
    for path in paths:
        if is_url(path):
            yield path
            continue
        folder, name = os.path.split(path)
        file = os.path.join(real_folder(folder), name)  # noqa: PTH118
        yield os.path.realpath(file) if os.path.islink(file) else file  # noqa: PTH114


def stamp(path: str) -> str:
    """What changes when a file does: its size and time, or what its store says in their place; empty if it is gone."""
    try:
        if not is_url(path):
            status = Path(path).stat()
            return f"{status.st_size} {status.st_mtime_ns}"
        files, name = _filesystem(path)
        info = _reached(path, lambda: files.info(name))
    except (OSError, DataError):
        return ""
    keys = ("size", "ETag", "etag", "mtime", "LastModified", "created")
    return " ".join(str(info[key]) for key in keys if info.get(key) is not None)


def _walk(folder: str, seen: set[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in seen:  # a link back up would lead round in circles
        return
    seen.add(real)
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        if entry.is_dir():
            yield from _walk(entry.path, seen)
        elif Path(entry.name).suffix.lower() in EXTENSIONS:
            yield entry.path


def _of_path(path: str) -> list[str]:
    # not Path.glob, which takes no absolute pattern
    matches = sorted(glob(path, recursive=True)) if has_magic(path) and not _exists(path) else []  # noqa: PTH207
    return [file for match in matches or [path] for file in _files_at(match)]


def _files_at(path: str) -> list[str]:
    if Path(path).is_dir():
        found = find_images(Path(path))
        if not found:
            raise DataError(f"folder {path} has no images: expected some of {', '.join(sorted(EXTENSIONS))}")
        return found
    if not Path(path).is_file():
        raise DataError(f"{path} does not exist: give image files, folders, patterns or shards that do")
    return [path]


def _of_url(url: str) -> list[str]:
    if "*" not in url and (is_shard(url) or is_image(url) or _plain(url).endswith(".txt")):
        return [url]
    files, name = _filesystem(url)
    is_pattern = "*" in url
    found = _reached(url, lambda: files.glob(name) if is_pattern else files.find(name))
    urls = [files.unstrip_protocol(each) for each in sorted(found)]
    images = [each for each in urls if is_image(each) or (is_pattern and is_shard(each))]
    if not images:
        raise DataError(f"{url} has no images: expected some of {', '.join(sorted(EXTENSIONS))}")
    return images


def _filesystem(url: str) -> tuple[Any, str]:
    # takes a fifth of a second, which most commands have no use for
    from fsspec.core import url_to_fs

    try:
        files, name = url_to_fs(url)
    except ImportError as error:
        raise ConfigError(f"{url} needs another package ({reason(error)}): install it") from error
    except ValueError as error:
        raise ConfigError(f"{url} cannot be opened ({reason(error)}): give a path, or a URL of a known kind") from error
    return files, name


def _reached(url: str, ask: Any) -> Any:  # noqa: ANN401 - what the store answers
    try:
        return ask()
    except KdplError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{url} does not exist: check the address") from error
    except Exception as error:  # each store raises its own
        raise DataError(
            f"{url} cannot be reached ({type(error).__name__}: {reason(error)}): check address, network and credentials"
        ) from error


def _local(path: str) -> str:
    path = path.removeprefix("file://")
    return path if is_url(path) else str(Path(path).expanduser())


def _exists(path: str) -> bool:
    return not is_url(path) and os.path.lexists(path)


def _plain(path: str) -> str:
    # what follows a question mark in a URL is no part of the name
    return (path.partition("?")[0] if is_url(path) else path).lower()


def _expanded(pattern: str) -> Iterator[str]:
    """Write out braces, ``{000..031}`` and ``{a,b}``, as a shell would."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    inside = braces[1]
    if "," in inside:
        choices = inside.split(",")
    else:
        first, last = inside.split("..")
        step = 1 if int(first) <= int(last) else -1
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]
    for choice in choices:
        yield from _expanded(f"{pattern[: braces.start()]}{choice}{pattern[braces.end() :]}")
