"""Tables of predictions as CSV, JSON lines or Parquet, and the journal that an interrupted command resumes from."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self, TextIO

from filelock import FileLock, Timeout

from kdpl.errors import ConfigError
from kdpl.runtime.faults import mark
from kdpl.runtime.files import append, atomic_path, cut_to_whole_lines, write_text

Row = dict[str, str | float | None]
"""Predictions for one image by column: ``path``, ``class``, ``probability``, ``class_2``, …, ``error``."""

FORMATS = (".csv", ".jsonl", ".parquet")

_ROW_GROUP = 65_536  # rows of a Parquet file in memory at once


def columns(top_k: int) -> list[str]:
    """Return the columns of a table with ``top_k`` classes per image."""
    ranks = [""] + [f"_{i}" for i in range(2, top_k + 1)]
    return ["path", *(name + rank for rank in ranks for name in ("class", "probability")), "error"]


def require_format(path: Path) -> None:
    """Raise a ConfigError if a table's ending is unknown, or the package for it is not installed."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"--out {path} has an unknown ending, expected one of {', '.join(FORMATS)}: give another")
    if path.suffix == ".parquet":
        _pyarrow()


def write_table(path: Path, rows: Iterable[Row], names: Sequence[str]) -> None:
    """Write rows with the given columns, in the format of the file's ending."""
    if path.suffix == ".parquet":
        arrow = _pyarrow()
        types = {name: arrow.float64() if name.startswith("probability") else arrow.string() for name in names}
        schema, remaining = arrow.schema(list(types.items())), iter(rows)
        with arrow.parquet.ParquetWriter(path, schema) as writer:
            while group := list(islice(remaining, _ROW_GROUP)):
                writer.write_table(arrow.Table.from_pylist(group, schema=schema))
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            write_csv(file, rows, names)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_csv(file: TextIO, rows: Iterable[Row], names: Sequence[str]) -> None:
    """Write a header and rows; None becomes an empty cell, and names that look like formulas stay (see the docs)."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = (row[name] for name in names)
        writer.writerow(f"{value:.6f}" if isinstance(value, float) else value for value in values)


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("a .parquet table needs pyarrow: pip install 'kdpl[parquet]', or write .csv") from error
    return pyarrow


class Journal:
    """Rows of an unfinished table, one JSON line each in ``OUT.partial``; one process at a time can enter it.

    The JSON values of ``job`` determine the rows: they are stored as ``OUT.job.json``, and compared on resume. ``done``
    is the number of complete rows so far, and ``finished`` is True if the table exists.
    """

    def __init__(self, out: Path, job: Mapping[str, Any]) -> None:
        self.out = out
        self.path = out.with_name(f"{out.name}.partial")
        self.done, self.finished = 0, False
        self._job = job
        self._note = out.with_name(f"{out.name}.job.json")
        self._lock = FileLock(out.with_name(f".{out.name}.lock"))

    def __enter__(self) -> Self:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(f"another process is writing {self.out}: wait for it, or give another --out") from None
        try:
            self.finished = self.out.exists()
            if self.finished or (self.path.exists() and self.path.stat().st_size > 0):
                self._require_same_job()
            else:
                write_text(self._note, json.dumps(self._job, indent=2) + "\n")
            if not self.finished:
                self.path.touch()
                self.done = cut_to_whole_lines(self.path)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            mark(error, f"the predictions so far are kept in {self.path}")
        self._close()

    def write(self, rows: list[Row]) -> None:
        """Add rows, which a kill from here on does not lose."""
        append(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def finish(self, names: Sequence[str]) -> None:
        """Write the table with the given columns; leaving the journal then removes it."""
        with self.path.open(encoding="utf-8", newline="\n") as lines, atomic_path(self.out) as temporary:
            write_table(temporary, map(json.loads, lines), names)
        self.finished = True

    def _require_same_job(self) -> None:
        try:
            noted = json.loads(self._note.read_text(encoding="utf-8"))
            different = [key for key in self._job if noted.get(key) != self._job[key]]
        except (OSError, ValueError, AttributeError):
            different = list(self._job)
        if different:
            raise ConfigError(
                f"{self.out if self.finished else self.path} may differ in {', '.join(different)} from what is wanted: "
                f"remove it with {self._note.name}, or give another --out"
            )

    def _close(self) -> None:
        if self.finished:
            self.path.unlink(missing_ok=True)
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()
