"""A dataset of one's own as a table: a row for each image, with its label and, where it has one, its split."""

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdpl.data.decoding import open_image
from kdpl.data.folder import unlabeled_images
from kdpl.data.splits import Record, Splits
from kdpl.errors import ConfigError, DataError, reason

_SPLITS = ("train", "val", "test")


def read_table(root: str, unlabeled: str | None = None) -> Splits:
    """Read a CSV or Parquet file with the columns ``image``, ``label`` and, if there are several splits, ``split``.

    Images without a label are unlabelled ones. The classes are the sorted labels, which are the class names. Relative
    paths begin at the table's folder.

    Args:
        root: The table, a ``.csv`` or ``.parquet`` file.
        unlabeled: Folder of further unlabelled images, searched recursively. With neither these nor rows without a
            label the training images serve.

    Returns:
        The dataset, in the order of the rows.

    Raises:
        DataError: The table is missing or says something that cannot be.
        ConfigError: It is a Parquet file, and pyarrow is not installed.
    """
    table = Path(root).expanduser()
    records: dict[str, list[tuple[str, str]]] = {split: [] for split in _SPLITS}
    without_label: list[str] = []
    split_of: dict[str, str] = {}
    for number, row in enumerate(_rows(table), start=1):
        image, label, split = (str(row.get(key) or "").strip() for key in ("image", "label", "split"))
        split = split or "train"
        if not image:
            raise DataError(f"row {number} of {table} names no image: fill in the column image, or remove the row.")
        if split not in _SPLITS:
            raise DataError(f"row {number} of {table} has split {split!r}: use {', '.join(_SPLITS)}, or nothing.")
        source = os.path.normpath(table.parent / image)
        if source in split_of:
            raise DataError(
                f"row {number} of {table} names {image} again, which stands under {split_of[source]} already: "
                "keep one row for each image."
            )
        split_of[source] = split if label else "the unlabelled images"
        if label:
            records[split].append((source, label))
        else:
            without_label.append(source)
    names = sorted({label for rows in records.values() for _, label in rows})
    if not names:
        raise DataError(f"{table} has no row with a label: fill in the column label for a few images of each class.")
    labels = {name: label for label, name in enumerate(names)}
    train, val, test = (tuple(Record(source, labels[name]) for source, name in records[split]) for split in _SPLITS)
    if unlabeled:
        without_label += unlabeled_images(Path(unlabeled).expanduser())
    return Splits(
        origin=f"table {table}",
        class_names=tuple(names),
        train=train,
        val=val,
        test=test,
        unlabeled=tuple(without_label) or None,
        open_image=open_image,
    )


def _rows(table: Path) -> Iterable[Mapping[str, Any]]:
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if table.suffix.lower() not in readers:
        raise DataError(f"table {table} is of an unknown kind: give a .csv or .parquet file as root.")
    if not table.is_file():
        raise DataError(f"table {table} does not exist: check root.")
    try:
        columns, rows = readers[table.suffix.lower()](table)
    except ConfigError:
        raise
    except Exception as error:  # csv, codecs and pyarrow each raise their own
        raise DataError(f"table {table} cannot be read ({reason(error)}): write it again.") from error
    for column in ("image", "label"):
        if column not in columns:
            raise DataError(
                f"table {table} has no column {column!r} but {', '.join(columns) or 'none'}: its first row must be "
                "image,label or image,label,split."
            )
    return rows


def _read_csv(table: Path) -> tuple[list[str], list[Mapping[str, Any]]]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        return [*(reader.fieldnames or ())], [*reader]


def _read_parquet(table: Path) -> tuple[list[str], list[Mapping[str, Any]]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("a .parquet table needs pyarrow: pip install 'kdpl[parquet]', or give a .csv") from error
    content = pyarrow.parquet.read_table(table)
    return content.column_names, content.to_pylist()
