"""Answers as they come: one JSON line for each image, which a killed command goes on from."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kdpl.errors import ConfigError
from kdpl.runtime.faults import mark
from kdpl.runtime.file_lock import taken
from kdpl.runtime.files import append, atomic_path, cut_to_whole_lines

Row = dict[str, str | float | None]
"""One image's answers by column: ``path``, ``class``, ``probability``, ``class_2``, …, ``error``."""


def columns(top_k: int) -> list[str]:
    """Name the columns of a table with ``top_k`` guesses for each image."""
    guesses = [name + (f"_{i}" if i > 1 else "") for i in range(1, top_k + 1) for name in ("class", "probability")]
    return ["path", *guesses, "error"]


class Journal:
    """The unfinished answers beside ``out``, and a note of what they are answers to.

    One process at a time holds it. A line that was being written when its process was killed is cut off.

    Args:
        out: The table that is to be made.
        job: What determines the answers, as JSON values; it stays beside the table as ``OUT.job.json``.

    Raises:
        ConfigError: Another process writes this table, or what is there answers something else.
    """

    def __init__(self, out: Path, job: Mapping[str, Any]) -> None:
        self.out = out
        self.path = out.with_name(f"{out.name}.partial")
        self._note = out.with_name(f"{out.name}.job.json")
        out.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+", encoding="utf-8")
        self._lock()
        try:
            self.finished = out.exists()
            if self.finished or self.path.stat().st_size > 0:
                self._require(job)
            else:
                with atomic_path(self._note) as temporary:
                    temporary.write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")
            self.done = 0 if self.finished else cut_to_whole_lines(self.path)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not self.finished:
            mark(error, f"the answers so far are kept in {self.path}")
        self._close()

    def write(self, rows: list[Row]) -> None:
        """Add rows; a kill from here on does not lose them."""
        append(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def rows(self) -> Iterator[Row]:
        """Read all rows, first to last."""
        with self.path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                yield json.loads(line)

    def _lock(self) -> None:
        if not taken(fcntl.flock, self._file.fileno(), self.path.parent):
            self._file.close()
            raise ConfigError(f"another process is writing {self.out}: wait for it, or give another --out")

    def _require(self, job: Mapping[str, Any]) -> None:
        try:
            noted = json.loads(self._note.read_text(encoding="utf-8"))
            different = [key for key in job if noted.get(key) != job[key]]
        except (OSError, ValueError, AttributeError):
            raise ConfigError(
                f"{self.out if self.finished else self.path} is there and nothing says what it answers: "
                "remove it, or give another --out"
            ) from None
        if different:
            raise ConfigError(
                f"{self.out} has answers that differ in {' and '.join(different)} from those wanted: "
                f"give another --out, or remove {self._note.name} and what it belongs to"
            )

    def _close(self) -> None:
        """Leave no empty file; the lock goes with the file."""
        own = self.path.exists() and os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        if own and (self.path.stat().st_size == 0 or self.finished):
            self.path.unlink()
        self._file.close()
