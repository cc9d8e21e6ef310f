"""Files and folders that are either complete or missing."""

import csv
import fnmatch
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from kdpl.errors import FULL, DataError

_SUFFIX = ".unfinished"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name next to ``path`` for a file or folder; rename it once it is complete.

    An existing file or folder of that name is replaced. If the block raises, nothing is left. The
    error for a full disk names ``path``.
    """
    with ExitStack() as at_end, _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # inside a temporary folder, the result may be a file or a folder
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX
        ) as scratch:
            # once more, as a signal may interrupt the removal
            at_end.callback(shutil.rmtree, scratch, ignore_errors=True)
            temporary = Path(scratch) / path.name
            yield temporary
            # flush to disk before the rename: a power failure could leave the name without content
            for written in filter(Path.is_file, (temporary, *temporary.rglob("*"))):
                with written.open("rb") as file:
                    os.fsync(file.fileno())
            if path.is_dir():
                path.rename(Path(scratch) / "replaced")
            temporary.replace(path)


def read_text(path: Path, what: str, newline: str | None = None, errors: str = "strict") -> str:
    """Read a user's text file in UTF-8; a DataError says ``what`` cannot be read."""
    try:
        with path.open(encoding="utf-8-sig", newline=newline, errors=errors) as file:
            return file.read()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{what} {path} is not in UTF-8 (line {line}): save it as UTF-8") from error
    except OSError as error:
        raise DataError(
            f"{what} {path} cannot be read ({error.strerror}): give a text file"
        ) from error


def lines_of(text: str) -> list[str]:
    """Return the lines of a text, without spaces around them, that are not empty."""
    return [line for line in map(str.strip, text.splitlines()) if line]


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically; a path in it may keep bytes that are not UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2))


def read_json(path: Path) -> Any:
    """Read a JSON file; a ValueError if it is damaged."""
    return json.loads(path.read_bytes())


def copy(source: Path, path: Path) -> None:
    """Copy a file atomically."""
    with atomic_path(path) as temporary:
        shutil.copyfile(source, temporary)


def write_rows(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file in UTF-8, atomically; a path in it may keep bytes that are not UTF-8."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file).writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows that ``write_rows`` wrote, by the columns in the first one."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        return list(csv.DictReader(lines))


def read_cells(path: Path, what: str, errors: str = "strict") -> Iterator[tuple[int, list[str]]]:
    """Yield the lines of a user's CSV file that are not empty: number, and cells without spaces.

    A DataError says ``what`` cannot be read. With the ``errors`` of ``surrogateescape``, a path may
    keep bytes that are not UTF-8.
    """
    # a quoted name may contain a line break, so lines are kept as they are
    text = StringIO(read_text(path, what, newline="", errors=errors), newline="")
    lines = csv.reader(text, skipinitialspace=True, strict=True)
    try:
        for row in lines:
            if row:
                yield lines.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise DataError(
            f"line {lines.line_num} of {what} {path} cannot be read as CSV ({error}): correct it"
        ) from error


def read_columns(path: Path, what: str, errors: str = "strict") -> dict[str, list[str]]:
    """Read a user's CSV file by the columns in its first line; missing cells are empty.

    As ``read_cells``; the DataError may also be of a line with too many values.
    """
    lines = read_cells(path, what, errors)
    _, names = next(lines, (0, []))
    while names and not names[-1]:  # spreadsheets leave commas at the end of a line
        names.pop()
    rows = []
    for number, cells in lines:
        if any(cells[len(names) :]):
            raise DataError(
                f"line {number} of {what} {path} has {len(cells)} values, expected {len(names)}: "
                "put a value with a comma in quotes"
            )
        rows.append(cells + [""] * (len(names) - len(cells)))
    return {name: [row[names.index(name)] for row in rows] for name in names}


def append(path: Path, text: str) -> None:
    """Add lines to a file; ``cut_to_whole_lines`` removes one that a kill or full disk left."""
    with _naming(path), path.open("a", encoding="utf-8", newline="") as file:
        file.write(text)


def cut_to_whole_lines(
    path: Path, first: int = 0, at_once: int = 1, keeps: Callable[[bytes], bool] = bool
) -> int:
    """Remove what a kill or a full disk left incomplete; return the number of lines.

    After the ``first`` lines, ``at_once`` lines were written together, and stay or go together. All
    go from the first one that ``keeps`` refuses.
    """
    lines = end = kept = kept_end = 0
    with path.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n") or (lines >= first and not keeps(line)):
                break
            lines, end = lines + 1, end + len(line)
            if lines <= first or (lines - first) % at_once == 0:
                kept, kept_end = lines, end
        file.truncate(kept_end)
    return kept


def remove_leftovers(folder: Path, but_with: str) -> None:
    """Remove partial files of killed processes, except in subfolders that contain ``but_with``."""
    for parent, folders, names in os.walk(folder):
        if but_with in names and parent != str(folder):
            folders.clear()
        for name in fnmatch.filter(folders, f".*{_SUFFIX}"):
            folders.remove(name)
            shutil.rmtree(Path(parent) / name, ignore_errors=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    # the system leaves the file out of the error of a full disk
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
