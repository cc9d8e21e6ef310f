"""Tables of predictions as CSV, JSON lines or Parquet."""

import csv
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from kdpl.errors import ConfigError

Row = dict[str, Any]
"""An image's predictions: ``path``, ``class``, ``probability``, ``class_2``, …, ``error``.

``classes`` and further scores come before ``error``, and ``embedding`` after it, if asked for.
"""

TABLE_FORMATS = (".csv", ".jsonl", ".parquet")

_ROW_GROUP = 4096  # rows of a Parquet file in memory at once


def require_format(path: Path, embeddings: bool = False) -> None:
    """Raise a ConfigError if a table cannot be written in the format of its file's ending."""
    formats = TABLE_FORMATS[1:] if embeddings else TABLE_FORMATS
    if path.suffix not in formats:
        what = "a table with embeddings" if embeddings else "a table"
        raise ConfigError(
            f"--out {path} has an unknown ending, expected one of {', '.join(formats)} for {what}: "
            "give another"
        )
    if path.suffix == ".parquet":
        pyarrow_of("a .parquet file")


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


def arrow_schema(names: Sequence[str]) -> Any:
    """Return the types of these columns, as a ``pyarrow.Schema``."""
    arrow = pyarrow_of("a .parquet file")

    def kind(name: str) -> Any:
        if name == "embedding":
            # not of a fixed length: pyarrow 23 does not read such lists back if one is null
            return arrow.list_(arrow.float32())
        is_text = name.startswith(("path", "class", "labels", "scores", "error"))
        return arrow.string() if is_text else arrow.float64()

    return arrow.schema([(name, kind(name)) for name in names])


def _write_parquet(path: Path, rows: Iterable[Row], names: Sequence[str]) -> None:
    arrow = pyarrow_of("a .parquet file")
    schema, remaining = arrow_schema(names), iter(rows)
    with arrow.parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(remaining, _ROW_GROUP)):
            writer.write_table(arrow.Table.from_pylist(group, schema=schema))


def pyarrow_of(what: str) -> Any:
    """Return pyarrow; a ConfigError that says what needs it, if it is missing."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            f"{what} needs pyarrow: pip install 'kdpl[parquet]', or use .csv or .jsonl"
        ) from error
    return pyarrow
