"""Readers with planted faults, one for each thing that must not happen."""

import os
import time
from pathlib import Path

from fuzz.target import Target

from kdpl.errors import DataError

WHOLE = b"whole"


def _refuse(file: Path) -> None:
    if file.read_bytes() != WHOLE:
        raise DataError("file is damaged: restore it")


def _key_error(file: Path) -> None:
    if file.read_bytes() != WHOLE:
        raise KeyError("width")


def _several_lines(file: Path) -> None:
    if file.read_bytes() != WHOLE:
        raise DataError("file is damaged\nfile is very damaged")


def _hang(file: Path) -> None:
    if file.read_bytes() != WHOLE:
        time.sleep(60)


def _fill_memory(file: Path) -> None:
    if file.read_bytes() != WHOLE:
        bytearray(b"x") * 40_000_000


def _write(file: Path) -> None:
    if file.read_bytes() != WHOLE:
        Path("written").touch()


def _crash(file: Path) -> None:
    if file.read_bytes() != WHOLE:
        os.abort()


_READERS = {
    "sound": _refuse,
    "key": _key_error,
    "lines": _several_lines,
    "hang": _hang,
    "memory": _fill_memory,
    "write": _write,
    "crash": _crash,
}


def build(folder: Path) -> dict[str, Target]:
    """Write a file for each of them."""
    targets = {name: Target(f"{name}.bin", read) for name, read in _READERS.items()}
    for target in targets.values():
        (folder / target.file).write_bytes(WHOLE)
    return targets
