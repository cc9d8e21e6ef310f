"""Tables of predictions as CSV, JSON lines or Parquet."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from kdpl.classifier.engines.parquet import writer
from kdpl.classifier.rows import Row
from kdpl.errors import ConfigError


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
        writer()


def write_table(path: Path, rows: Iterable[Row], names: Sequence[str]) -> None:
    """Write rows with the given columns, in the format of the file's ending."""
    if path.suffix == ".parquet":
        writer()(path, rows, names)
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
