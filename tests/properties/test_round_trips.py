import csv
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from texts import class_names, text

from kdpl.data.class_mapping import ClassName, read_class_mapping
from kdpl.data.readers.table import Table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def write_rows(file, rows):
    with file.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows(rows)


names = class_names(max_size=6)
mappings = st.lists(
    st.tuples(names, names, st.none() | names),
    min_size=1,
    max_size=4,
    unique_by=(lambda row: row[0], lambda row: row[1]),
)


@settings(max_examples=25)
@given(mappings)
@example([("label", "name", None), ("folder", "text", None)])
def test_class_names_come_back_from_a_file(folder, rows):
    expected = {key: ClassName(name, (text,) if text else ()) for key, name, text in rows}
    write_rows(
        folder / "names.csv", [("label", "name", "text"), *((k, n, t or "") for k, n, t in rows)]
    )
    assert read_class_mapping(folder / "names.csv", expected) == expected


images = text(without="\0", max_size=6).map(str.strip).filter(lambda name: name not in ("", "."))
splits_of_rows = st.sampled_from(["", "train", "val", "test"])


@settings(max_examples=25)
@example(first=("0", "0"), rows=[("a\rb", "0", ""), ("a\nb", "", "")])
@given(
    first=st.tuples(images, names),
    rows=st.lists(
        st.tuples(images, names | st.just(""), splits_of_rows),
        max_size=6,
        unique_by=lambda row: os.path.normpath(row[0]),
    ),
)
def test_a_table_gives_each_image_its_label_and_split_in_the_order_of_its_rows(folder, first, rows):
    # an image of a test or validation split has a label
    rows = [(image, label, split if label else "") for image, label, split in rows]
    first_path = os.path.normpath(first[0])
    rows = [row for row in rows if os.path.normpath(row[0]) != first_path]
    rows = [(*first, "train"), *rows]
    write_rows(folder / "table.csv", [("image", "label", "split"), *rows])
    splits = Table(str(folder / "table.csv")).read()
    expected = {"train": [], "val": [], "test": [], "unlabeled": []}
    for image, label, split in rows:
        source = os.path.normpath(folder / image)
        if label:
            expected[split or "train"].append((source, label))
        else:
            expected["unlabeled"].append(source)
    for split in ("train", "val", "test"):
        records = getattr(splits, split)
        assert [(r.source, splits.class_names[r.label]) for r in records] == expected[split]
    assert list(splits.unlabeled or ()) == expected["unlabeled"]
    assert list(splits.class_names) == sorted({label for _, label, _ in rows if label})
