"""Search for images and other files in folders and by patterns."""

import os
import re
from collections.abc import Callable, Iterator
from glob import glob, has_magic
from itertools import chain
from pathlib import Path

from kdpl.errors import DataError

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

_BRACES = re.compile(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}")


def is_url(path: str) -> bool:
    """Return whether a path is a URL, such as ``s3://bucket/photos``."""
    return "://" in path


def is_image(path: str) -> bool:
    """Return whether a path names an image that is not hidden."""
    # no Path: it is slow for millions of names
    name = os.path.basename(plain(path))  # noqa: PTH119
    return os.path.splitext(name)[1] in EXTENSIONS and not name.startswith(".")  # noqa: PTH122


def find_images(folder: Path) -> list[str]:
    """Find images below a folder by extension, sorted, not hidden; follow each link once."""
    return list(_walk(str(folder), os.path.realpath(folder), set(), is_image))


def resolve(path: str, is_archive: Callable[[str], bool]) -> Iterator[str]:
    """Find image files and archives by path or pattern, sorted in each folder and pattern.

    A folder is searched recursively for images and, if it has none, for archives; DataError if it
    has neither.
    """
    path = str(Path(path).expanduser())
    names = [path] if os.path.lexists(path) else expand_braces(path)
    return (file for name in names for file in _of_path(name, is_archive))


def expand_braces(pattern: str) -> Iterator[str]:
    """Expand ``{000..031}`` and ``{a,b}`` as a shell does."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    # expand the first braces, then those in the rest of the pattern
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


def _walk(
    folder: str, real: str, seen: set[str], is_wanted: Callable[[str], bool]
) -> Iterator[str]:
    if real in seen:  # a link to a folder above
        return
    seen.add(real)
    # keep entries only of folders and links: there may be millions of files
    names, special_entries = list[str](), dict[str, os.DirEntry[str]]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                names.append(entry.name)
                if not entry.is_file(follow_symlinks=False):
                    special_entries[entry.name] = entry
    for name in sorted(names):
        path, special = os.path.join(folder, name), special_entries.get(name)  # noqa: PTH118
        if special and special.is_dir():
            inner = os.path.realpath(path) if special.is_symlink() else os.path.join(real, name)  # noqa: PTH118
            yield from _walk(path, inner, seen, is_wanted)
        elif is_wanted(name):
            yield path


def _of_path(path: str, is_archive: Callable[[str], bool]) -> Iterator[str]:
    # Path.glob takes no absolute pattern
    is_pattern = has_magic(path) and not os.path.lexists(path)
    matches = sorted(glob(path, recursive=True)) if is_pattern else []  # noqa: PTH207
    for match in matches or [path]:
        if Path(match).is_file():
            yield match
        elif Path(match).is_dir():
            images, archives = (
                _walk(match, os.path.realpath(match), set(), is_wanted)
                for is_wanted in (is_image, is_archive)
            )
            yield from required(match, images, archives)
        else:
            raise DataError(
                f"{match} does not exist: give image files, folders, patterns or shards that do"
            )


def required(location: str, images: Iterator[str], archives: Iterator[str]) -> Iterator[str]:
    """Yield the images of a folder or URL, or its archives if it has no images."""
    for files in (images, archives):
        if (first := next(files, None)) is not None:
            return chain([first], files)
    what = location if is_url(location) else f"folder {location}"
    raise DataError(f"{what} has no images: expected some of {', '.join(sorted(EXTENSIONS))}")


def plain(path: str) -> str:
    """Return a path in lower case, a URL without its query."""
    return (path.partition("?")[0] if is_url(path) else path).lower()
