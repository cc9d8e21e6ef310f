import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import world
from PIL import Image

from kdpl.data.readers.table import Table
from kdpl.errors import ConfigError, DataError

ROWS = [
    ("a/1.png", "sea dog", "train"),
    ("a/2.png", "cat", ""),
    ("b/3.png", "", ""),
    ("b/4.png", "cat", "val"),
    ("b/5.png", "sea dog", "test"),
    ("b/6.png", "", "train"),
]


def write(path, rows=ROWS, header="image,label,split"):
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return str(path)


def shown(splits, folder):
    return {
        "train": [(os.path.relpath(r.source, folder), r.label) for r in splits.train],
        "val": [(os.path.relpath(r.source, folder), r.label) for r in splits.val],
        "test": [(os.path.relpath(r.source, folder), r.label) for r in splits.test],
        "unlabeled": None if splits.unlabeled is None else [os.path.relpath(s, folder) for s in splits.unlabeled],
    }


EXPECTED = {
    "train": [("a/1.png", 1), ("a/2.png", 0)],
    "val": [("b/4.png", 0)],
    "test": [("b/5.png", 1)],
    "unlabeled": ["b/3.png", "b/6.png"],
}


def test_rows_become_splits_in_their_order_and_those_without_a_label_are_unlabelled(tmp_path):
    splits = Table(write(tmp_path / "labels.csv")).read()
    assert splits.class_names == ("cat", "sea dog")
    assert shown(splits, tmp_path) == EXPECTED


def test_a_parquet_file_is_read_likewise(tmp_path):
    columns = {name: [row[i] or None for row in ROWS] for i, name in enumerate(("image", "label", "split"))}
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    assert shown(Table(str(tmp_path / "labels.parquet")).read(), tmp_path) == EXPECTED


def test_further_unlabelled_images_come_from_a_folder(tmp_path):
    (tmp_path / "more").mkdir()
    Image.new("RGB", (4, 4), "red").save(tmp_path / "more" / "x.png")
    splits = Table(write(tmp_path / "labels.csv"), str(tmp_path / "more")).read()
    assert shown(splits, tmp_path)["unlabeled"] == ["b/3.png", "b/6.png", "more/x.png"]
    assert splits.open_image(splits.unlabeled[-1]).getpixel((0, 0)) == (255, 0, 0)


def test_absolute_paths_spaces_and_a_byte_order_mark_are_taken(tmp_path):
    elsewhere = str(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "t").mkdir()
    (tmp_path / "t/labels.csv").write_bytes(f"\ufeffimage, label\n{elsewhere}, cat\n".encode())
    assert Table(str(tmp_path / "t/labels.csv")).read().train == ((elsewhere, 0),)


@pytest.mark.parametrize(
    ("rows", "header", "match"),
    [
        ([("1.png", "cat")], "file,label", r"has no column 'image' but file, label: its first row must be image,label"),
        ([("", "cat")], "image,label", "row 1 of .* names no image"),
        ([("1.png", "cat", "training")], "image,label,split", "row 1 of .* has split 'training': use train, val, test"),
        ([("1.png", "cat", "train"), ("./1.png", "dog", "test")], "image,label,split", "row 2 of .* again, .*train"),
        ([("1.png", "cat"), ("1.png", "")], "image,label", "row 2 of .* again"),
        ([("1.png", "")], "image,label", "no row with a label"),
        ([], "image,label", "no row with a label"),
    ],
)
def test_what_cannot_be_is_one_sentence(rows, header, match, tmp_path):
    with pytest.raises(DataError, match=match) as error:
        Table(write(tmp_path / "labels.csv", rows, header)).read()
    assert world.one_sentence(error)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("gone.csv", None, "gone.csv does not exist: check root"),
        ("labels.txt", b"image,label", "of an unknown kind: give a .csv or .parquet"),
        ("labels.csv", b"image,label\n\xff\xfe.png,cat\n", "cannot be read"),
        ("labels.parquet", b"no parquet", "cannot be read"),
        ("labels.csv", b"", "has no column 'image' but none"),
    ],
)
def test_a_file_that_is_not_a_table_is_named(name, content, match, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=match) as error:
        Table(str(tmp_path / name)).read()
    assert world.one_sentence(error)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "labels.parquet").touch()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pip install 'kdpl\[parquet\]'"):
        Table(str(tmp_path / "labels.parquet")).read()
