"""Tables of predictions: their rows, written as CSV, JSON lines or Parquet."""

import csv
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from kdpl.errors import ConfigError
from kdpl.runtime.optional import optional

Row = dict[str, Any]
"""An image's predictions: ``path``, ``class``, ``probability``, ``class_2``, …, ``error``.

``classes`` and further scores, if requested, come before ``error``, and ``embedding`` after it.
"""

_ROW_GROUP = 4096  # rows of a Parquet file in memory at once


def require_format(path: Path, embeddings: bool = False) -> None:
    """Raise a ConfigError if no table can be written with the ending of the file."""
    formats = [*([] if embeddings else [".csv"]), ".jsonl", ".parquet"]
    if path.suffix not in formats:
        what = "a table with embeddings" if embeddings else "a table"
        raise ConfigError(
            f"--out {path} has an unknown ending, expected one of {', '.join(formats)} for {what}: "
            "give another"
        )
    if path.suffix == ".parquet":
        _pyarrow()


def write_table(path: Path, rows: Iterable[Row], names: Sequence[str]) -> None:
    """Write rows with the given columns, in the format of the file's ending."""
    if path.suffix == ".parquet":
        _write_parquet(path, rows, names)
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


def _pyarrow() -> Any:
    optional("pyarrow.parquet", "a .parquet file", "parquet")
    return optional("pyarrow", "a .parquet file", "parquet")


def _write_parquet(path: Path, rows: Iterable[Row], names: Sequence[str]) -> None:
    arrow = _pyarrow()

    def kind(name: str) -> Any:
        if name == "embedding":
            # not a fixed-size list: pyarrow 23 cannot read it back with a null in it
            return arrow.list_(arrow.float32())
        is_text = name.startswith(("path", "class", "labels", "scores", "error"))
        return arrow.string() if is_text else arrow.float64()

    schema, remaining = arrow.schema({name: kind(name) for name in names}), iter(rows)
    with arrow.parquet.ParquetWriter(path, schema) as file:
        while group := list(islice(remaining, _ROW_GROUP)):
            file.write_table(arrow.Table.from_pylist(group, schema=schema))
