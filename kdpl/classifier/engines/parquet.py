"""Tables of predictions as Parquet, and the types of their columns in Arrow."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from kdpl.classifier.rows import Row, Write
from kdpl.runtime.optional import optional

_ROW_GROUP = 4096  # rows in memory at once


def arrow_schema(names: Sequence[str]) -> Any:
    """Return the types of these columns, as a ``pyarrow.Schema``."""
    arrow = optional("pyarrow", "a .parquet file", "parquet")
    kinds = {}
    for name in names:
        if name == "embedding":
            # not a fixed-size list: pyarrow 23 cannot read it back with a null in it
            kinds[name] = arrow.list_(arrow.float32())
        elif name.startswith(("path", "class", "labels", "scores", "error")):
            kinds[name] = arrow.string()
        else:
            kinds[name] = arrow.float64()
    return arrow.schema(kinds)


def writer() -> Write:
    """Return the function that writes Parquet; a ConfigError without pyarrow."""
    arrow = optional("pyarrow", "a .parquet file", "parquet")
    parquet = optional("pyarrow.parquet", "a .parquet file", "parquet")

    def write(path: Path, rows: Iterable[Row], names: Sequence[str]) -> None:
        schema, remaining = arrow_schema(names), iter(rows)
        with parquet.ParquetWriter(path, schema) as file:
            while group := list(islice(remaining, _ROW_GROUP)):
                file.write_table(arrow.Table.from_pylist(group, schema=schema))

    return write
