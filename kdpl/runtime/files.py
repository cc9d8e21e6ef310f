"""Files and folders that are whole or not there at all."""

import errno
import fnmatch
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdpl.errors import KdplError
from kdpl.runtime.faults import FULL

_PROBE_BYTES = 2**16
_SUFFIX = ".unfinished"


@contextmanager
def atomic_path(path: Path, replace: bool = True) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write a file or folder to; it takes the name only once it is whole.

    An existing file or folder of that name is replaced. When the block raises, nothing stays.

    Args:
        path: The name.
        replace: Whether a folder with something in it is replaced as well.

    Raises:
        FileExistsError: There is such a folder, and it is not to be replaced.
        OSError: The disk is full, whatever the library that was writing makes of it; names ``path``.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # a folder of its own, so that the temporary thing may be a file or a folder
        with (
            tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX) as scratch,
            # within: once the scratch folder is removed, there may be room again
            naming(path),
        ):
            temporary = Path(scratch) / path.name
            yield temporary
            # safetensors 0.8 makes files that their owner alone may read: give them the mode of any other new file
            example = Path(scratch) / "example"
            example.touch()
            for written in (temporary, *temporary.rglob("*")):
                if written.is_file():
                    written.chmod(example.stat().st_mode)
                    _write_through(written)
            _take_place(temporary, path, Path(scratch) / "replaced" if replace else None)


def _write_through(path: Path) -> None:
    """See that a file is on the disk before it has its name, which a power cut would leave with no content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # what knows nothing of it
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def _take_place(new: Path, path: Path, replaced: Path | None) -> None:
    """Give a file or folder its name; what has the name is moved away before, which only folders need."""
    if replaced is not None and path.is_dir():
        path.rename(replaced)
    try:
        new.replace(path)
    except BaseException as error:
        if replaced is not None and replaced.exists() and not path.exists():
            replaced.rename(path)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        raise


def append(path: Path, text: str) -> None:
    """Add text to a file, all of it or nothing.

    Raises:
        OSError: The disk is full; names ``path``.
    """
    with naming(path), path.open("ab", buffering=0) as file:
        content, before = text.encode(), file.tell()
        try:
            written = file.write(content)
            if written < len(content):
                # the rest asks the system what is wrong
                file.write(content[written:])
        except BaseException:
            file.truncate(before)
            raise


def cut_to_whole_lines(path: Path) -> int:
    """Remove the line that was being written when its process was killed; gives how many lines there are."""
    lines = whole = 0
    with path.open("r+b") as file:
        for line in file:
            if line.endswith(b"\n"):
                lines, whole = lines + 1, whole + len(line)
        file.truncate(whole)
    return lines


def remove_leftovers(folder: Path, but_with: str) -> None:
    """Remove what processes that were killed left half-written in a folder that nobody else writes into now.

    Args:
        folder: The folder.
        but_with: A name; folders below with something of that name are left alone.
    """
    for place, folders, names in os.walk(folder):
        if but_with in names and place != str(folder):
            folders.clear()
        for name in fnmatch.filter(folders, f".*{_SUFFIX}"):
            folders.remove(name)
            shutil.rmtree(Path(place) / name, ignore_errors=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in the error of a full disk, of which the system does not say where, and libraries not even what."""
    try:
        yield
    except Exception as error:
        if isinstance(error, KdplError) or (isinstance(error, OSError) and error.filename == str(path)):
            raise
        number = _number_of(error)
        if number not in FULL:
            number = _refusal(path.parent)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _number_of(error: Exception) -> int | None:
    """The system's number of an error, which libraries may keep in its text alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    number = re.search(r"\((?:os error|errno) (\d+)\)", str(error))
    return int(number[1]) if number else None


def _refusal(folder: Path) -> int | None:
    """What number the system says to a little more in a folder, if it is full."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno if error.errno in FULL else None
    return None
