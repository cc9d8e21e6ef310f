"""Tables of predictions as CSV, JSON lines or Parquet, embeddings, and a journal to resume."""

import base64
import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np
from filelock import FileLock, Timeout

from kdpl.errors import ConfigError
from kdpl.runtime.faults import mark
from kdpl.runtime.files import append, atomic_path, cut_to_whole_lines, write_text

Row = dict[str, str | float | None]
"""An image's predictions: ``path``, ``class``, ``probability``, ``class_2``, …, ``error``.

``classes`` and further scores come before ``error`` if asked for. In a journal also ``embedding``,
base64 of float32.
"""

TABLE_FORMATS = (".csv", ".jsonl", ".parquet")
EMBEDDING_FORMATS = (".npy", ".parquet")

_ROW_GROUP = 65_536  # rows of a Parquet file in memory at once
_EMBEDDINGS_AT_ONCE = 4096


def require_format(
    path: Path, option: str = "--out", formats: Sequence[str] = TABLE_FORMATS
) -> None:
    """Raise a ConfigError if a file's ending is unknown, or the package for it is not installed."""
    if path.suffix not in formats:
        raise ConfigError(
            f"{option} {path} has an unknown ending, expected one of "
            f"{', '.join(formats)}: give another"
        )
    if path.suffix == ".parquet":
        _pyarrow()


def write_table(path: Path, rows: Iterable[Row], names: Sequence[str]) -> None:
    """Write rows with the given columns, in the format of the file's ending."""
    if path.suffix == ".parquet":
        arrow = _pyarrow()
        types = {
            name: arrow.string() if name.startswith(("path", "class", "error")) else arrow.float64()
            for name in names
        }
        _write_parquet(path, rows, types, _ROW_GROUP)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            write_csv(file, rows, names)
        else:
            kept = ({name: row[name] for name in names} for row in rows)
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)


def write_csv(file: TextIO, rows: Iterable[Row], names: Sequence[str]) -> None:
    """Write a header and rows; None is an empty cell, and names like formulas stay (see docs)."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = (row[name] for name in names)
        writer.writerow(f"{value:.6f}" if isinstance(value, float) else value for value in values)


def encode_embedding(embedding: np.ndarray) -> str:
    """Return an embedding [D] as the value of a row."""
    return base64.b64encode(embedding.astype("<f4").tobytes()).decode()


def write_embeddings(path: Path, rows: Iterable[Row], shape: tuple[int, int]) -> None:
    """Write the embeddings of N rows, float32 [N, D], as ``.npy``, or with paths as ``.parquet``.

    Images that have none get NaN, or null.
    """
    if path.suffix == ".npy":
        nothing = np.full(shape[1], np.nan, "<f4").tobytes()
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": shape}
            )
            file.writelines(_embedding(row) or nothing for row in rows)
        return
    arrow = _pyarrow()
    # not of a fixed length: pyarrow 23 does not read such lists back if one is null
    types = {"path": arrow.string(), "embedding": arrow.list_(arrow.float32())}
    embeddings = ((row["path"], _embedding(row)) for row in rows)
    decoded = (
        {"path": name, "embedding": np.frombuffer(e, "<f4") if e else None}
        for name, e in embeddings
    )
    _write_parquet(path, decoded, types, _EMBEDDINGS_AT_ONCE)


def _embedding(row: Row) -> bytes | None:
    value = row.get("embedding")
    return base64.b64decode(value) if isinstance(value, str) else None


def _write_parquet(
    path: Path, rows: Iterable[Mapping[str, Any]], types: Mapping[str, Any], at_once: int
) -> None:
    arrow = _pyarrow()
    schema, remaining = arrow.schema(list(types.items())), iter(rows)
    with arrow.parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(remaining, at_once)):
            writer.write_table(arrow.Table.from_pylist(group, schema=schema))


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            "a .parquet file needs pyarrow: pip install 'kdpl[parquet]', or write another"
        ) from error
    return pyarrow


class Journal:
    """Rows of an unfinished table, as JSON lines in ``OUT.partial``, for one process at a time.

    The JSON values of ``job`` determine the rows: they are stored as ``OUT.job.json``, and compared
    on resume. ``done`` is the number of complete rows so far, and ``finished`` is True if the table
    exists. A journal without rows reserves a file that is made from those of another.
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
            raise ConfigError(
                f"another process is writing {self.out}: wait for it, or write another file"
            ) from None
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
        if error is not None and self.done:
            mark(error, f"the predictions so far are kept in {self.path}")
        self._close()

    def write(self, rows: list[Row]) -> None:
        """Add rows, which a kill from here on does not lose."""
        append(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self.done += len(rows)

    def rows(self) -> Iterator[Row]:
        """Yield all rows so far."""
        with self.path.open(encoding="utf-8", newline="\n") as lines:
            yield from map(json.loads, lines)

    def finish(self, names: Sequence[str]) -> None:
        """Write the table with the given columns; leaving the journal then removes it."""
        with atomic_path(self.out) as temporary:
            write_table(temporary, self.rows(), names)
        self.finished = True

    def _require_same_job(self) -> None:
        try:
            noted = json.loads(self._note.read_text(encoding="utf-8"))
            different = [key for key in self._job if noted.get(key) != self._job[key]]
        except (OSError, ValueError, AttributeError):
            different = list(self._job)
        if different:
            raise ConfigError(
                f"{self.out if self.finished else self.path} may differ in {', '.join(different)} "
                f"from what is wanted: remove it with {self._note.name}, or write another file"
            )

    def _close(self) -> None:
        if self.finished:
            self.path.unlink(missing_ok=True)
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()
