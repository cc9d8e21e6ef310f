"""Search for images and other files in folders and by patterns."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from glob import glob
from pathlib import Path, PurePosixPath

from kdpl.errors import DataError, visible

EXTENSIONS = frozenset({".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg"})
EXTENSIONS |= {".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

COMPRESSED_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PARQUET_ENDING = ".parquet"

_BRACES = re.compile(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}")


def is_url(path: str) -> bool:
    """Return whether a path is a URL, such as ``s3://bucket/shards``."""
    return "://" in path


def is_image(path: str) -> bool:
    """Return whether a path names an image that is not hidden."""
    # no Path: it is slow for millions of names
    name = os.path.basename(path)  # noqa: PTH119
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")  # noqa: PTH122


def is_shard(path: str) -> bool:
    """Return whether a path names a tar archive or Parquet file, by its extension."""
    return path.lower().endswith((".tar", *COMPRESSED_ENDINGS, PARQUET_ENDING))


def is_parquet(path: str) -> bool:
    """Return whether a path names a Parquet file, by its extension."""
    return path.lower().endswith(PARQUET_ENDING)


def is_below(path: str) -> bool:
    """Return whether a path leads to something below the folder that it starts from."""
    path = path.replace("\\", "/")
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts


def find_images(folder: Path) -> list[str]:
    """Find images below a folder, sorted, not hidden; follow each link once."""
    return list(walk(folder))


def count_suffixes(paths: Iterable[str]) -> str:
    """Count files by suffix, the most frequent first, such as ``.heic (2), .txt (1)``."""
    counts = Counter(Path(path).suffix.lower() or "no suffix" for path in paths)
    return visible(", ".join(f"{suffix} ({count})" for suffix, count in counts.most_common()))


def resolve(path: str) -> Iterator[str]:
    """Find image files and shards by path or pattern, sorted; DataError if there are none.

    A folder is searched recursively for images and, if it has none, for shards.
    """
    path = str(Path(path).expanduser())
    for name in [path] if os.path.lexists(path) else expand_braces(path):
        # Path.glob takes no absolute pattern, and a name may look like a pattern
        matches = [] if os.path.lexists(name) else sorted(glob(name, recursive=True))  # noqa: PTH207
        for match in matches or [name]:
            if Path(match).is_file():
                yield match
            elif Path(match).is_dir():
                is_wanted = is_image if any(walk(match)) else is_shard
                if not any(walk(match, is_wanted)):
                    endings = ", ".join(sorted(EXTENSIONS))
                    raise DataError(f"folder {match} has no images: expected some of {endings}")
                yield from walk(match, is_wanted)
            else:
                raise DataError(
                    f"{match} does not exist: give image files, folders, patterns or shards that do"
                )


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


def walk(
    folder: str | Path, is_wanted: Callable[[str], bool] = is_image, seen: set[str] | None = None
) -> Iterator[str]:
    """Yield images below a folder as ``find_images`` does, or other files by name."""
    seen = set() if seen is None else seen
    real = os.path.realpath(folder)
    if real in seen:  # a link to a folder above
        return
    seen.add(real)
    with os.scandir(folder) as entries:
        names = sorted(
            (entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")
        )
    for name, is_folder in names:
        path = os.path.join(folder, name)  # noqa: PTH118
        if is_folder:
            yield from walk(path, is_wanted, seen)
        elif is_wanted(name):
            yield path
