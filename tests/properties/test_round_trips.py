import csv
import json
import os
import tempfile
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from texts import class_names, text

from kdpl.data.class_mapping import ClassName, read_class_mapping
from kdpl.data.readers.table import Table
from kdpl.data.storage import is_url
from kdpl.deploy.sources import printable
from kdpl.deploy.tables import FORMATS, columns, write_table


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def write_rows(file, rows):
    with file.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows(rows)


mappings = st.lists(
    st.tuples(class_names(), class_names(), st.none() | class_names()),
    max_size=6,
    unique_by=(lambda row: row[0], lambda row: row[1]),
)


@given(mappings)
@example([("label", "name", None), ("folder", "text", None)])
def test_class_names_come_back_from_either_kind_of_file(folder, rows):
    expected = {key: ClassName(name, text) for key, name, text in rows}
    objects = {key: name if text is None else {"name": name, "text": text} for key, name, text in rows}
    for ascii_only in (True, False):
        content = json.dumps(objects, ensure_ascii=ascii_only)
        (folder / "names.json").write_text(content, encoding="utf-8")
        assert read_class_mapping(folder / "names.json", expected) == expected
    write_rows(folder / "names.csv", [("label", "name", "text"), *((k, n, t or "") for k, n, t in rows)])
    assert read_class_mapping(folder / "names.csv", expected) == expected


images = text(without="\0").map(str.strip).filter(lambda name: name not in ("", "."))
table_rows = st.lists(
    st.tuples(images, class_names() | st.just(""), st.sampled_from(["", "train", "val", "test"])),
    max_size=8,
    unique_by=lambda row: os.path.normpath(row[0]),
)


@given(st.tuples(images, class_names()), table_rows)
def test_a_table_gives_each_image_its_label_and_split_in_the_order_of_its_rows(folder, first, rows):
    # an image of a test or validation split has a label
    rows = [(image, label, split if label else "") for image, label, split in rows]
    rows = [(*first, "train"), *(row for row in rows if os.path.normpath(row[0]) != os.path.normpath(first[0]))]
    write_rows(folder / "table.csv", [("image", "label", "split"), *rows])
    splits = Table(str(folder / "table.csv")).read()
    expected = {"train": [], "val": [], "test": [], "unlabeled": []}
    for image, label, split in rows:
        source = image if is_url(image) else os.path.normpath(image if image.startswith("/") else f"{folder}/{image}")
        if label:
            expected[split or "train"].append((source, label))
        else:
            expected["unlabeled"].append(source)
    for split in ("train", "val", "test"):
        there = [(record.source, splits.class_names[record.label]) for record in getattr(splits, split)]
        assert there == expected[split]
    assert list(splits.unlabeled or ()) == expected["unlabeled"]
    assert list(splits.class_names) == sorted({label for _, label, _ in rows if label})


paths = text(without="\0") | st.binary(max_size=6).map(os.fsdecode)
probabilities = st.integers(0, 10**6).map(lambda millionths: millionths / 10**6)


def rows_of_predictions(top_k):
    guess = st.tuples(class_names(), probabilities)
    refused = st.tuples(paths.map(printable), st.none(), text(without="\r\n", max_size=30).filter(bool))
    answered = st.tuples(paths.map(printable), st.lists(guess, min_size=top_k, max_size=top_k), st.none())
    return st.lists(refused | answered, max_size=5)


def as_row(names, path, guesses, error):
    values = [value for guess in guesses or () for value in guess]
    return {**dict.fromkeys(names), "path": path, "error": error, **dict(zip(names[1:-1], values, strict=False))}


def read_back(file, names):
    if file.suffix == ".parquet":
        table = pyarrow.parquet.read_table(file)
        assert table.column_names == names
        return table.to_pylist()
    with file.open(newline="", encoding="utf-8") as lines:
        if file.suffix == ".jsonl":
            return [json.loads(line) for line in lines.read().split("\n") if line]
        read = list(csv.reader(lines))
    assert read[0] == names
    # CSV has no other way to say that there is nothing
    cells = [[cell or None for cell in row] for row in read[1:]]
    return [
        {name: float(c) if c and name.startswith("probability") else c for name, c in zip(names, row, strict=True)}
        for row in cells
    ]


@pytest.mark.parametrize("ending", FORMATS)
@given(st.data())
def test_a_table_of_predictions_is_read_back_as_it_was_written(folder, ending, data):
    top_k = data.draw(st.integers(1, 3), "top_k")
    names = columns(top_k)
    rows = [as_row(names, *row) for row in data.draw(rows_of_predictions(top_k), "rows")]
    # an empty path is none in CSV, and no image has one
    rows = [{**row, "path": row["path"] or "."} for row in rows]
    file = folder / f"predictions{ending}"
    write_table(file, iter(rows), names)
    assert read_back(file, names) == rows
