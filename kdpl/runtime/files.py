"""Files and folders that are complete or not there at all."""

import csv
import errno
import fnmatch
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kdpl.errors import DataError, KdplError
from kdpl.runtime.faults import FULL

_LEAST_FREE = 2**16  # bytes
_SUFFIX = ".unfinished"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` for a file or folder; rename it once it is complete.

    An existing file or folder of that name is replaced. If the block raises, nothing is left. The
    error of a full disk names ``path``.
    """
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # a folder of its own, so that the temporary thing may be a file or a folder
        with (
            tempfile.TemporaryDirectory(
                dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX
            ) as scratch,
            # within: once the scratch folder is removed, there may be room again
            _naming(path),
        ):
            temporary = Path(scratch) / path.name
            yield temporary
            # safetensors and archives make files that others may not read: give them the mode of
            # any other new file
            example = Path(scratch) / "example"
            example.touch()
            for written in (temporary, *temporary.rglob("*")):
                if written.is_file():
                    written.chmod(example.stat().st_mode)
                    _write_through(written)
            _take_place(temporary, path, Path(scratch) / "replaced")


def _write_through(path: Path) -> None:
    """Write a file through to the disk before it is renamed.

    Otherwise, a power failure would leave the name without content.
    """
    with path.open("rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            # file systems without it
            if error.errno != errno.EINVAL:
                raise


def _take_place(new: Path, path: Path, replaced: Path) -> None:
    """Rename a file or folder; a folder that has the name is moved away first."""
    if path.is_dir():
        path.rename(replaced)
    try:
        new.replace(path)
    except BaseException:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        raise


def read_text(path: Path, what: str, newline: str | None = None) -> str:
    """Read a text file that somebody wrote, in UTF-8; a DataError says ``what`` cannot be read.

    ``newline`` is that of ``open``.
    """
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            return file.read()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{what} {path} is not in UTF-8 (line {line}): save it as UTF-8") from error
    except OSError as error:
        raise DataError(
            f"{what} {path} cannot be read ({error.strerror}): give a text file"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_rows(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file in UTF-8, atomically; a path in it may keep bytes that are not UTF-8."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file).writerows(rows)


def append(path: Path, text: str) -> None:
    """Add text to a file, all of it or nothing."""
    with _naming(path), path.open("ab", buffering=0) as file:
        content, before = text.encode(), file.tell()
        try:
            written = file.write(content)
            if written < len(content):
                # the rest raises the reason
                file.write(content[written:])
        except BaseException:
            file.truncate(before)
            raise


def cut_to_whole_lines(path: Path) -> int:
    """Remove a line left incomplete when its process was killed; return the number of lines."""
    lines = whole = 0
    with path.open("r+b") as file:
        for line in file:
            if line.endswith(b"\n"):
                lines, whole = lines + 1, whole + len(line)
        file.truncate(whole)
    return lines


def remove_leftovers(folder: Path, but_with: str) -> None:
    """Remove partial files of killed processes, except in subfolders that contain ``but_with``."""
    for place, folders, names in os.walk(folder):
        if but_with in names and place != str(folder):
            folders.clear()
        for name in fnmatch.filter(folders, f".*{_SUFFIX}"):
            folders.remove(name)
            shutil.rmtree(Path(place) / name, ignore_errors=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in the error of a full disk, which the system and libraries leave out."""
    try:
        yield
    except KdplError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        # safetensors and torch raise their own errors on a full disk
        if number is None and shutil.disk_usage(path.parent).free < _LEAST_FREE:
            number = errno.ENOSPC
        if number not in FULL:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
