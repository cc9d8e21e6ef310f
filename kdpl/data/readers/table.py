"""Dataset as a table: a row for each image, with its label and optionally its split."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from kdpl.data.class_mapping import name_classes, read_class_mapping
from kdpl.data.names import Names, unlisted
from kdpl.data.sources import OwnImages, find_unlabeled
from kdpl.data.splits import Record, Splits
from kdpl.errors import ConfigError, DataError, visible
from kdpl.runtime.class_names import composed
from kdpl.runtime.files import read_text

HELD_OUT = "held_out"
"""Split of test images that were set aside by chance."""

UNKNOWN = "?"
"""Cell of an image without a label, in a table of several labels."""

_SEPARATORS = ",;|"

_UNLABELED = "the unlabelled images"

_SPLITS = ("train", "val", "test", HELD_OUT)


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
            self.task = "multilabel"

    def read(self) -> Splits:
        """Read the dataset, in the order of the rows."""
        # check each row, and sort it into its split
        table = Path(self.root).expanduser()
        records: dict[str, list[tuple[str, tuple[str, ...]]]] = {split: [] for split in _SPLITS}
        without_label, split_of, groups = list[str](), dict[str, str](), dict[str, str]()
        split_of_group: dict[str, str] = {}
        rows = read_rows(table, not self.class_names, self.label_separator)
        if not self.any_labels:
            _require_task(table, [cell for _, cell, _, _ in rows], self.label_separator)
        for number, (image, cell, split, group) in enumerate(rows, start=1):
            source = os.path.normpath(table.parent / image)
            label = split_cell(cell, self.label_separator)
            problem = None
            if not image:
                problem = "names no image: fill in the column image, or remove the row"
            elif split not in _SPLITS:
                problem = f"has split {split!r}: use {', '.join(_SPLITS)}, or nothing"
            elif split != "train" and label is None:
                problem = f"has split {split!r} and no label: label it, or leave split empty"
            elif source in split_of:
                problem = (
                    f"names {image} again, which is in {split_of[source]} already: "
                    "keep one row for each image"
                )
            elif group and label is not None and split_of_group.setdefault(group, split) != split:
                problem = (
                    f"is of group {group} and split {split}, but an earlier one of the group of "
                    f"split {split_of_group[group]}: keep a group in one split, or rename it"
                )
            if problem:
                raise DataError(f"row {number} of {table} {problem}")
            split_of[source] = split if label is not None else _UNLABELED
            if label is not None:
                records[split].append((source, label))
                groups |= {source: group} if group else {}
            else:
                without_label.append(source)
        # the classes are the labels, or the names in the file
        keys = sorted({key for rows in records.values() for _, label in rows for key in label})
        if self.class_names and not records["train"] and (without_label or self.unlabeled):
            named = read_class_mapping(Path(self.class_names), keys, complete=False)
            keys = list(named)
        if not keys:
            raise DataError(
                f"{table} has no row with a label: fill in the column label for a few images of "
                "each class, or write a "
                "list of the classes, give it as classes.names, and set shots to 0"
            )
        if records["test"] and records[HELD_OUT]:
            raise DataError(
                f"{table} has images of split test and of split {HELD_OUT}: use one of the two"
            )
        # number the classes, and add the other unlabelled images
        labels = {key: label for label, key in enumerate(keys)}
        several = self.label_separator is not None

        def record(source: str, classes: tuple[str, ...]) -> Record:
            numbers = tuple(sorted(labels[key] for key in classes))
            return Record(source, numbers if several else numbers[0])

        train, val, test, held_out = (
            tuple(record(source, label) for source, label in records[split]) for split in _SPLITS
        )
        unlabeled = Names.of(without_label)
        if self.unlabeled:
            # test and validation images are left out later, for all datasets, with a message
            listed = [s for s, split in split_of.items() if split in ("train", _UNLABELED)]
            unlabeled = Names.joined([unlabeled, unlisted(find_unlabeled(self.unlabeled), listed)])
        names, texts = name_classes(keys, self.class_names, self.class_text)
        parts = (train, val, test or held_out, unlabeled or None, self.open_source)
        return Splits(
            f"table {table}",
            names,
            *parts,
            class_texts=texts,
            held_out=bool(held_out),
            groups=groups,
        )


def split_cell(cell: str, separator: str | None) -> tuple[str, ...] | None:
    """Return the classes in a label, one without a separator; None if the image has no label."""
    if separator is None:
        return (cell,) if cell else None
    if cell == UNKNOWN:
        return None
    return tuple(dict.fromkeys(filter(None, map(str.strip, cell.split(separator)))))


def read_rows(
    table: Path, labeled: bool, separator: str | None = None
) -> list[tuple[str, str, str, str]]:
    """Read image, label in composed form, split and group of each row; an empty split is ``train``.

    With a ``separator`` for several labels, ``?`` is a missing label, and the separator alone means
    none of the classes.

    DataError if it cannot be read, lacks the column ``image`` or, with ``labeled``, ``label``, or a
    row has a value beyond the columns, as from a comma without quotes; with a ``separator``, also
    for an empty label, or a label with ``?`` among its classes.
    """
    if table.suffix.lower() != ".csv":
        raise DataError(f"table {table} is of an unknown kind: give a .csv file")
    if not table.is_file():
        raise DataError(f"table {table} does not exist: give the table of your images")
    columns = _csv_columns(table)
    for name in ("image", "label")[: 1 + labeled]:
        if name not in columns:
            problem = f"has no column {name!r} but {', '.join(map(visible, columns)) or 'none'}"
            raise DataError(
                f"table {table} {problem}: its first row must be image,label or image,label,split"
            )
    # fill in missing columns
    none = [""] * len(columns["image"])
    splits = [split or "train" for split in columns.get("split", none)]
    missing = "" if separator is None else UNKNOWN
    labels = list(map(composed, columns.get("label", [missing] * len(none))))
    if separator is not None:
        _require_clear(table, labels, separator)
    return list(zip(columns["image"], labels, splits, columns.get("group", none), strict=True))


def _require_clear(table: Path, cells: Sequence[str], separator: str) -> None:
    """Raise a DataError if a label of several classes is ambiguous."""
    for number, cell in enumerate(cells, start=1):
        if cell != UNKNOWN and UNKNOWN in (split_cell(cell, separator) or ()):
            raise DataError(
                f"row {number} of {table} has the label {visible(cell)!r}, in which {UNKNOWN!r} "
                f"may be any class: write all classes of the image, or {UNKNOWN!r} alone"
            )
    if "" in cells:
        raise DataError(
            f"{cells.count('')} of {len(cells)} rows of {table} have an empty label, expected "
            f"classes: write {separator!r} if an image is of none of the classes, or {UNKNOWN!r} "
            "if nobody has labelled it"
        )


def _require_task(table: Path, cells: Sequence[str], separator: str | None) -> None:
    """Raise a DataError if labels are lists and there is no separator, or the other way round."""
    # a separator that separates nothing
    if separator is not None:
        labels = [cell for cell in cells if cell != UNKNOWN]
        if {len(split_cell(cell, separator) or ()) for cell in labels} == {1}:
            raise DataError(
                f"column label of {table} has one label in each row, such as "
                f"{visible(labels[0])!r}, but label_separator is {separator!r}: leave it out, or "
                "correct it"
            )
        return
    # no separator, but a label made of other labels
    single = {*cells}
    for cell in cells:
        for mark in {*cell} & {*_SEPARATORS}:
            parts = split_cell(cell, mark) or ()
            if len(parts) > 1 and {*parts} <= single:
                raise DataError(
                    f"column label of {table} has {visible(cell)!r}, whose parts are labels of "
                    f"other rows: set label_separator to {mark!r}, or rename the class"
                )


def _csv_columns(table: Path) -> dict[str, list[str]]:
    # a quoted name may contain a line break, so lines are kept as they are
    text = StringIO(read_text(table, "table", newline=""), newline="")
    lines = csv.reader(text, skipinitialspace=True, strict=True)
    try:
        names = [name.strip() for name in next(lines, [])]
        while names and not names[-1]:  # spreadsheets leave commas at the end of a line
            names.pop()
        rows = []
        for row in lines:
            cells = [cell.strip() for cell in row]
            if any(cells[len(names) :]):
                problem = (
                    f"line {lines.line_num} of {table} has {len(row)} values, expected {len(names)}"
                )
                raise DataError(f"{problem}: put a value with a comma in quotes")
            if cells:
                rows.append(cells + [""] * (len(names) - len(cells)))
    except csv.Error as error:
        raise DataError(
            f"line {lines.line_num} of {table} cannot be read ({error}): correct it"
        ) from error
    return {name: [row[names.index(name)] for row in rows] for name in names}
