"""A dataset of one's own as a table: a row for each image, with its label and, where it has one, its split."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdpl.data.class_mapping import list_classes, name_classes
from kdpl.data.names import Names, unlisted
from kdpl.data.sources import OwnImages, find_unlabeled
from kdpl.data.splits import Record, Splits
from kdpl.data.storage import is_url
from kdpl.errors import ConfigError, DataError, reason, visible

if TYPE_CHECKING:
    from pandas import DataFrame

HELD_OUT = "held_out"
"""Split of test images that were set aside by chance."""

_SPLITS = ("train", "val", "test", HELD_OUT)


@dataclass
class Table(OwnImages):
    """A CSV or Parquet file with the columns ``image``, ``label`` and, if there are several splits, ``split``.

    Images without a label are unlabelled ones. The split ``held_out`` is of test images that were set aside by chance,
    for lack of others, as ``init`` does. The classes are the sorted labels, or, where no training image has one, those
    of the file ``class_names``. Relative paths begin at the table's folder; URLs are taken as they are.
    """

    def read(self) -> Splits:
        """Read the dataset, in the order of the rows."""
        table = Path(self.root).expanduser()
        records: dict[str, list[tuple[str, str]]] = {split: [] for split in _SPLITS}
        without_label, split_of = list[str](), dict[str, str]()
        for number, (image, label, split) in enumerate(read_rows(table, not self.class_names), start=1):
            fault = None
            if not image:
                fault = "names no image: fill in the column image, or remove the row"
            elif split not in _SPLITS:
                fault = f"has split {split!r}: use {', '.join(_SPLITS)}, or nothing"
            elif split != "train" and not label:
                fault = f"has split {split!r} and no label: label it, or leave split empty"
            source = image if is_url(image) else os.path.normpath(table.parent / image)
            if source in split_of and not fault:
                fault = f"names {image} again, which is in {split_of[source]} already: keep one row for each image"
            if fault:
                raise DataError(f"row {number} of {table} {fault}")
            split_of[source] = split if label else "the unlabelled images"
            if label:
                records[split].append((source, label))
            else:
                without_label.append(source)
        keys = sorted({label for rows in records.values() for _, label in rows})
        if self.class_names and not records["train"] and (without_label or self.unlabeled):
            keys = list_classes(self.class_names, keys)
        if not keys:
            raise DataError(
                f"{table} has no row with a label: fill in the column label for a few images of each class, or write a "
                "list of the classes, give it as class_names, and set shots to 0"
            )
        if records["test"] and records[HELD_OUT]:
            raise DataError(f"{table} has images of split test and of split {HELD_OUT}: use one of the two")
        labels = {key: label for label, key in enumerate(keys)}
        train, val, test, held_out = (
            tuple(Record(source, labels[key]) for source, key in records[split]) for split in _SPLITS
        )
        unlabeled = Names.of(without_label)
        if self.unlabeled:
            unlabeled = Names.joined([unlabeled, unlisted(find_unlabeled(self.unlabeled), split_of)])
        names, texts = name_classes(keys, self.class_names, self.class_text)
        parts = (train, val, test or held_out, unlabeled or None, self.open_source)
        return Splits(f"table {table}", names, *parts, class_texts=texts, held_out=bool(held_out))


def read_rows(table: Path, labeled: bool) -> list[tuple[str, str, str]]:
    """Read image, label and split of each row; the split of an empty cell is ``train``.

    DataError if it cannot be read, or lacks the column ``image`` or, with ``labeled``, ``label``.
    """
    if table.suffix.lower() not in (".csv", ".parquet"):
        raise DataError(f"table {table} is of an unknown kind: give a .csv or .parquet file as root")
    if not table.is_file():
        raise DataError(f"table {table} does not exist: check root")
    frame = _frame(table)
    columns = {str(name).strip(): [_text(value) for value in values] for name, values in frame.items()}
    for name in ("image", "label")[: 1 + labeled]:
        if name not in columns:
            said = f"has no column {name!r} but {', '.join(map(visible, columns)) or 'none'}"
            raise DataError(f"table {table} {said}: its first row must be image,label or image,label,split")
    none = [""] * len(frame)
    splits = [split or "train" for split in columns.get("split", none)]
    return list(zip(columns["image"], columns.get("label", none), splits, strict=True))


def _frame(table: Path) -> "DataFrame":
    import pandas as pd

    try:
        if table.suffix.lower() == ".parquet":
            return pd.read_parquet(table)
        # as text: NA is a label like any other
        return pd.read_csv(
            table, dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig", index_col=False
        )
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except ImportError as error:
        raise ConfigError("a .parquet table needs pyarrow: pip install 'kdpl[parquet]', or give a .csv") from error
    except Exception as error:  # pandas and pyarrow each raise their own
        raise DataError(f"table {table} cannot be read ({reason(error)}): write it again") from error


def _text(value: object) -> str:
    # Parquet has numbers: 0 is a label like any other, and missing values make floats of whole numbers
    if value is None or value != value or str(value) == "<NA>":
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
