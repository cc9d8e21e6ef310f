"""A dataset of one's own as a table: a row for each image, with its label and, where it has one, its split."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdpl.data.class_mapping import name_classes
from kdpl.data.sources import find_unlabeled, open_source
from kdpl.data.splits import Record, Splits
from kdpl.data.storage import is_url, places
from kdpl.errors import ConfigError, DataError, reason

HELD_OUT = "held_out"
"""Split of test images that were set aside by chance."""

_SPLITS = ("train", "val", "test", HELD_OUT)


def read_table(
    root: str,
    unlabeled: str | Sequence[str] | None = None,
    class_names: str | None = None,
    class_text: str | None = None,
) -> Splits:
    """Read a CSV or Parquet file with the columns ``image``, ``label`` and, if there are several splits, ``split``.

    Images without a label are unlabelled ones. The split ``held_out`` is of test images that were set aside by chance,
    for want of others, as ``init`` does. The classes are the sorted labels. Relative paths begin at the table's folder;
    a URL stands for itself.

    Args:
        root: The table, a ``.csv`` or ``.parquet`` file.
        unlabeled: Where further unlabelled images are, see ``find_unlabeled``. With neither these nor rows without a
            label the training images serve.
        class_names: File that maps label to class name and text; None: the labels serve.
        class_text: What the text tower reads for a class, with ``{}`` in the place of its name or text.

    Returns:
        The dataset, in the order of the rows.

    Raises:
        DataError: The table is missing or says something that cannot be.
        ConfigError: It is a Parquet file, and pyarrow is not installed; ``class_text`` has no place for the name; or a
            URL is of a kind that cannot be opened.
    """
    table = Path(root).expanduser()
    records: dict[str, list[tuple[str, str]]] = {split: [] for split in _SPLITS}
    without_label: list[str] = []
    split_of: dict[str, str] = {}
    for number, row in enumerate(_rows(table), start=1):
        image, label, split = (_text(row.get(key)) for key in ("image", "label", "split"))
        split = split or "train"
        if not image:
            raise DataError(f"row {number} of {table} names no image: fill in the column image, or remove the row.")
        if split not in _SPLITS:
            raise DataError(f"row {number} of {table} has split {split!r}: use {', '.join(_SPLITS)}, or nothing.")
        if split != "train" and not label:
            raise DataError(
                f"row {number} of {table} has split {split!r} and no label: label it, or leave split empty."
            )
        source = image if is_url(image) else os.path.normpath(table.parent / image)
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
    keys = sorted({label for rows in records.values() for _, label in rows})
    if not keys:
        raise DataError(f"{table} has no row with a label: fill in the column label for a few images of each class.")
    labels = {key: label for label, key in enumerate(keys)}
    if records["test"] and records[HELD_OUT]:
        raise DataError(f"{table} has images of split test and of split {HELD_OUT}: let all of them be of one.")
    train, val, test, held_out = (
        tuple(Record(source, labels[key]) for source, key in records[split]) for split in _SPLITS
    )
    if unlabeled:
        listed, further = frozenset(places(split_of)), find_unlabeled(unlabeled)
        without_label += [source for source, at in zip(further, places(further), strict=True) if at not in listed]
    names, texts = name_classes(keys, class_names, class_text)
    return Splits(
        origin=f"table {table}",
        class_names=names,
        class_texts=texts,
        train=train,
        val=val,
        test=test or held_out,
        unlabeled=tuple(without_label) or None,
        open_image=open_source,
        held_out=bool(held_out),
    )


def _text(value: object) -> str:
    # Parquet has numbers: 0 is one as good as others, and NaN, which equals nothing, makes fractions of whole ones
    if value is None or value != value:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


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
