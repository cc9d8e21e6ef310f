"""Dataset as a table: a row for each image, with its label and optionally its split."""

import os
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kdpl.data.class_mapping import name_classes, read_class_mapping
from kdpl.data.names import Names, unlisted
from kdpl.data.sources import OwnImages, find_unlabeled
from kdpl.data.splits import Record, Splits
from kdpl.errors import ConfigError, DataError, visible
from kdpl.runtime.class_names import composed
from kdpl.runtime.files import read_columns

HELD_OUT = "held_out"
"""Split of test images that were set aside by chance."""

SEVERAL = "multilabel"
"""Task of labels that are lists of classes."""

UNKNOWN = "?"
"""Cell of an image without a label, in a table of several labels."""

_SPLITS = ("train", "val", "test", HELD_OUT)


class Row(NamedTuple):
    """Row of a table; ``classes`` is None for an image without a label."""

    source: str
    classes: tuple[str, ...] | None
    split: str
    group: str


@dataclass
class Table(OwnImages):
    """CSV file with columns ``image``, ``label``, and perhaps ``split`` and ``group``.

    Images without a label are unlabelled. The split ``held_out`` has test images that ``init`` drew
    from the labelled images, because there were no test images. The classes are the sorted labels
    or, if no training image has one, the classes in the file ``class_names``. Relative paths start
    at the table's folder.

    With a ``label_separator``, a label is a list of any number of classes: the separator alone
    stands for none of them, and ``?`` for an unlabelled image. An empty label may mean either, and
    is refused. ``any_labels`` accepts such a table even if all images have one class each.
    """

    label_separator: str | None = None
    any_labels: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_separator is not None:
            if len(self.label_separator) != 1:
                raise ConfigError(
                    f"label_separator is {self.label_separator!r}, expected one character: set it "
                    "to the one between two labels, such as ';'"
                )
            self.task = SEVERAL

    def rows(self) -> list[Row]:
        """Read and check the rows, in their order; a DataError for the first that is invalid."""
        table, separator = Path(self.root).expanduser(), self.label_separator
        columns = _csv_columns(table)
        for name in ("image",) if self.class_names else ("image", "label"):
            if name not in columns:
                names = ", ".join(map(visible, columns)) or "none"
                raise DataError(
                    f"table {table} has no column {name!r} but {names}: its first row must be "
                    "image,label or image,label,split"
                )
        # fill in missing columns
        none = [""] * len(columns["image"])
        missing = "" if separator is None else UNKNOWN
        cells = [composed(cell) for cell in columns.get("label", [missing] * len(none))]
        self._require_labels(table, cells)
        # check each row
        earlier, split_of_group = dict[str, Row](), dict[str, str]()
        optional = (columns.get(name, none) for name in ("split", "group"))
        values = zip(columns["image"], cells, *optional, strict=True)
        for number, (image, cell, split, group) in enumerate(values, start=1):
            source = os.path.normpath(table.parent / image)
            row = Row(source, split_cell(cell, separator), split or "train", group)
            labeled, problem = row.classes is not None, ""
            if not image:
                problem = "names no image: fill in the column image, or remove the row"
            elif row.split not in _SPLITS:
                problem = f"has split {split!r}: use {', '.join(_SPLITS)}, or nothing"
            elif row.split != "train" and not labeled:
                problem = f"has split {split!r} and no label: label it, or leave split empty"
            elif source in earlier:
                twin = earlier[source]
                part = "the unlabelled images" if twin.classes is None else twin.split
                problem = (
                    f"names {image} again, which is in {part} already: keep one row for each image"
                )
            elif group and labeled and split_of_group.setdefault(group, row.split) != row.split:
                problem = (
                    f"is of group {group} and split {row.split}, but an earlier one of the group "
                    f"of split {split_of_group[group]}: keep a group in one split, or rename it"
                )
            if problem:
                raise DataError(f"row {number} of {table} {problem}")
            earlier[source] = row
        rows = [*earlier.values()]
        if {"test", HELD_OUT} <= {row.split for row in rows}:
            raise DataError(
                f"{table} has images of split test and of split {HELD_OUT}: use one of the two"
            )
        return rows

    def _require_labels(self, table: Path, cells: Sequence[str]) -> None:
        """Raise a DataError for unclear labels, or lists where the setting says otherwise."""
        separator = self.label_separator
        if separator is None:
            # a label made of other labels
            single = frozenset(cells)
            for cell in () if self.any_labels else cells:
                if mark := separator_in(cell, single):
                    raise DataError(
                        f"column label of {table} has {visible(cell)!r}, whose parts are labels of "
                        f"other rows: set label_separator to {mark!r}, or rename the class"
                    )
            return
        # cells that may mean several things
        classes = {cell: split_cell(cell, separator) or () for cell in cells}
        for number, cell in enumerate(cells, start=1):
            if UNKNOWN in classes[cell]:
                raise DataError(
                    f"row {number} of {table} has the label {visible(cell)!r}, in which "
                    f"{UNKNOWN!r} may be any class: write all classes of the image, or "
                    f"{UNKNOWN!r} alone"
                )
        if "" in classes:
            raise DataError(
                f"{cells.count('')} of {len(cells)} rows of {table} have an empty label, expected "
                f"classes: write {separator!r} if an image is of none of the classes, or "
                f"{UNKNOWN!r} if nobody has labelled it"
            )
        # a separator that separates nothing
        labels = [cell for cell in classes if cell != UNKNOWN]
        if not self.any_labels and {len(classes[cell]) for cell in labels} == {1}:
            raise DataError(
                f"column label of {table} has one label in each row, such as "
                f"{visible(labels[0])!r}, but label_separator is {separator!r}: leave it out, or "
                "correct it"
            )

    def read(self) -> Splits:
        """Read the dataset, in the order of the rows."""
        table, rows = Path(self.root).expanduser(), self.rows()
        labeled = [(row, row.classes) for row in rows if row.classes is not None]
        without_label = [row.source for row in rows if row.classes is None]
        # the classes are the labels, or the names in the file
        keys = sorted({key for _, classes in labeled for key in classes})
        trained = any(row.split == "train" for row, _ in labeled)
        if self.class_names and not trained and (without_label or self.unlabeled):
            keys = list(read_class_mapping(Path(self.class_names), keys, complete=False))
        if not keys:
            raise DataError(
                f"{table} has no row with a label: fill in the column label for a few images of "
                "each class, or write a "
                "list of the classes, give it as classes.names, and set shots to 0"
            )
        # number the classes, and add the other unlabelled images
        numbers = {key: number for number, key in enumerate(keys)}
        records: dict[str, list[Record]] = {split: [] for split in _SPLITS}
        for row, classes in labeled:
            labels = tuple(sorted(numbers[key] for key in classes))
            label = labels[0] if self.label_separator is None else labels
            records[row.split].append(Record(row.source, label))
        unlabeled = Names.of(without_label)
        if self.unlabeled:
            # test and validation images are left out later, for all datasets, with a message
            listed = [row.source for row in rows if row.split == "train"]
            unlabeled = Names.joined([unlabeled, unlisted(find_unlabeled(self.unlabeled), listed)])
        names, texts = name_classes(keys, self.class_names, self.class_text)
        train, val, test, held_out = map(tuple, records.values())
        return Splits(
            f"table {table}",
            names,
            train,
            val,
            test or held_out,
            unlabeled or None,
            self.open_source,
            class_texts=texts,
            held_out=bool(held_out),
            groups={row.source: row.group for row, _ in labeled if row.group},
        )


def split_cell(cell: str, separator: str | None) -> tuple[str, ...] | None:
    """Return the classes in a label, one without a separator; None if the image has no label."""
    if separator is None:
        return (cell,) if cell else None
    if cell == UNKNOWN:
        return None
    return tuple(dict.fromkeys(filter(None, map(str.strip, cell.split(separator)))))


def separator_in(cell: str, labels: Container[str]) -> str | None:
    """Return the usual character that several of the labels are joined by, if it is one."""
    for mark in ",;|":
        parts = split_cell(cell, mark) or ()
        if len(parts) > 1 and all(part in labels for part in parts):
            return mark
    return None


def _csv_columns(table: Path) -> dict[str, list[str]]:
    if table.suffix.lower() != ".csv":
        raise DataError(f"table {table} is of an unknown kind: give a .csv file")
    if not table.is_file():
        raise DataError(f"table {table} does not exist: give the table of your images")
    return read_columns(table, "table")
