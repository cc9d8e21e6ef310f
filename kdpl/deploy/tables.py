"""Tables of answers: CSV, JSON lines and Parquet, with one row for each image and the same columns."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from kdpl.deploy.journal import Row
from kdpl.errors import ConfigError

FORMATS = (".csv", ".jsonl", ".parquet")

_ROW_GROUP = 65_536  # rows of a Parquet file that are in memory at once


def require_format(path: Path) -> None:
    """Refuse a table that cannot be written, before any work is done.

    Raises:
        ConfigError: Its ending is not known, or the package for it is not installed.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"--out {path} has an unknown ending, expected one of {', '.join(FORMATS)}: give another")
    if path.suffix == ".parquet":
        _pyarrow()


def write_table(path: Path, rows: Iterable[Row], names: Sequence[str]) -> None:
    """Write rows to a file in the format that its ending names.

    Args:
        path: The file.
        rows: Its rows.
        names: Its columns.
    """
    if path.suffix == ".parquet":
        _write_parquet(path, iter(rows), names)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            write_csv(file, rows, names)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_csv(file: TextIO, rows: Iterable[Row], names: Sequence[str]) -> None:
    """Write a header and rows; what is None is left empty.

    Paths and class names stand as they are, those that a spreadsheet would take for a formula too: a mark before them
    would be another name to every other program. docs/deployment.md says so.
    """
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow(
            f"{value:.6f}" if isinstance(value, float) else value for value in (row[name] for name in names)
        )


def _pyarrow() -> Any:  # noqa: ANN401
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("a .parquet table needs pyarrow: pip install 'kdpl[parquet]', or write .csv") from error
    return pyarrow


def _write_parquet(path: Path, rows: Iterator[Row], names: Sequence[str]) -> None:
    arrow = _pyarrow()
    kinds = {name: arrow.float64() if name.startswith("probability") else arrow.string() for name in names}
    schema = arrow.schema(list(kinds.items()))
    with arrow.parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, _ROW_GROUP)):
            writer.write_table(arrow.Table.from_pylist(group, schema=schema))
