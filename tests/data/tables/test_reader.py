import os
import sys
from pathlib import Path

import pytest
import world
from runs import noise

from kdpl.data.readers.table import Table
from kdpl.errors import ConfigError, DataError

ROWS = """image,label,split
a/1.png,sea dog,train
a/2.png,cat,
b/3.png,,
b/4.png,cat,val
b/5.png,sea dog,test
b/6.png,,train
"""


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_become_splits_in_their_order_and_those_without_a_label_are_unlabelled(kind, tmp_path):
    file = tmp_path / f"labels.{kind}"
    (tmp_path / "labels.csv").write_text(ROWS)
    if kind == "parquet":
        csv, parquet = (pytest.importorskip(f"pyarrow.{name}") for name in ("csv", "parquet"))
        options = csv.ConvertOptions(strings_can_be_null=True)
        parquet.write_table(csv.read_csv(tmp_path / "labels.csv", convert_options=options), file)
    (tmp_path / "more").mkdir()
    noise(4, 4).save(tmp_path / "more/x.png")
    for more, further in ((None, []), (str(tmp_path / "more"), ["more/x.png"])):
        splits = Table(str(file), more).read()
        assert splits.class_names == ("cat", "sea dog")
        labels = [
            [(os.path.relpath(record.source, tmp_path), record.label) for record in part]
            for part in (splits.train, splits.val, splits.test)
        ]
        assert labels == [[("a/1.png", 1), ("a/2.png", 0)], [("b/4.png", 0)], [("b/5.png", 1)]]
        assert [os.path.relpath(s, tmp_path) for s in splits.unlabeled] == [
            "b/3.png",
            "b/6.png",
            *further,
        ]
    assert splits.open_image(splits.unlabeled[-1]).tobytes() == noise(4, 4).tobytes()


def test_groups_are_read_and_one_in_two_splits_is_refused(tmp_path):
    rows = ["1.png,cat,,a", "2.png,dog,,", "3.png,cat,test,b", "4.png,dog,val,c", "5.png,,,b"]
    (tmp_path / "t.csv").write_text("\n".join(["image,label,split,group", *rows]))
    groups = Table(str(tmp_path / "t.csv")).read().groups
    named = {Path(source).name: group for source, group in groups.items()}
    assert named == {"1.png": "a", "3.png": "b", "4.png": "c"}
    rows[3] = "4.png,dog,val,a"
    (tmp_path / "t.csv").write_text("\n".join(["image,label,split,group", *rows]))
    with pytest.raises(DataError, match=r"row 4 of .* is of group a and split val, but an earlier"):
        Table(str(tmp_path / "t.csv")).read()


def test_absolute_paths_spaces_and_a_byte_order_mark_are_taken(tmp_path):
    elsewhere = str(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "labels.csv").write_bytes(f"\ufeffimage, label\n{elsewhere}, cat\n".encode())
    assert Table(str(tmp_path / "labels.csv")).read().train == ((elsewhere, 0),)


@pytest.mark.parametrize(
    ("rows", "tested"),
    [
        ("image\n1.png\n2.png\n", []),
        ("image,label\n1.png,\n2.png,\n", []),
        ("image,label,split\n1.png,,\n2.png,,train\n3.png,n1,test\n", [1]),
    ],
)
def test_without_a_labelled_training_image_the_classes_are_listed_in_a_file(rows, tested, tmp_path):
    (tmp_path / "images.csv").write_text(rows)
    (tmp_path / "names.csv").write_text("n2,tench\nn1,ant\n")
    splits = Table(str(tmp_path / "images.csv"), class_names=str(tmp_path / "names.csv")).read()
    assert (splits.class_names, splits.train) == (("tench", "ant"), ())
    assert list(splits.unlabeled) == [str(tmp_path / name) for name in ("1.png", "2.png")]
    assert [record.label for record in splits.test] == tested


def test_a_table_for_tests_alone_keeps_the_order_of_its_labels(tmp_path):
    (tmp_path / "images.csv").write_text("image,label,split\n1.png,n1,test\n2.png,n2,test\n")
    (tmp_path / "names.csv").write_text("n2,tench\nn1,ant\n")
    splits = Table(str(tmp_path / "images.csv"), class_names=str(tmp_path / "names.csv")).read()
    assert splits.class_names == ("ant", "tench")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        (
            "x.csv",
            b"file,label\n1.png,cat\n",
            "has no column 'image' but file, label: its first row must be",
        ),
        ("x.csv", b"image,label\n,cat\n", "row 1 of .* names no image"),
        (
            "x.csv",
            b"image,label,split\n1.png,cat,training\n",
            "row 1 .* has split 'training': use train, val, test",
        ),
        (
            "x.csv",
            b"image,label,split\n1.png,cat,train\n./1.png,dog,test\n",
            "row 2 of .* again, .*train",
        ),
        ("x.csv", b"image,label\n", "no row with a label: .* write a list of the classes"),
        (
            "x.csv",
            b'image,label\n1.png,"cat\n2.png,dog\n',
            "line 3 of .* cannot be read .*: correct it",
        ),
        (
            "x.csv",
            "image,label\n1.png,cat\n2.png,Kätzchen\n".encode("latin-1"),
            r"UTF-8 \(line 3\): save it as UTF-8",
        ),
        ("x.csv", None, "x.csv does not exist: check root"),
        ("x.txt", b"image,label", "of an unknown kind: give a .csv or .parquet"),
        ("x.parquet", b"no parquet", "cannot be read"),
    ],
)
def test_what_is_not_such_a_table_is_one_sentence(name, content, match, tmp_path):
    if name == "x.parquet":
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with world.refused(DataError, match):
        Table(str(tmp_path / name)).read()


COMMA = "Prunus avium, wild cherry"
UNQUOTED = "line {} of .*x.csv has 3 values, expected 2: put a value with a comma in quotes"


@pytest.mark.parametrize("line", [2, 3, 5])
def test_an_unquoted_comma_is_refused_in_any_row_and_a_quoted_one_is_part_of_the_label(
    line, tmp_path
):
    rows = ["image,label", "1.png,Prunus avium", "2.png,Prunus padus", "", "3.png,Prunus padus"]
    image = rows[line - 1].partition(",")[0]
    rows[line - 1] = f"{image},{COMMA}"
    (tmp_path / "x.csv").write_text("\n".join(rows))
    with world.refused(DataError, UNQUOTED.format(line)):
        Table(str(tmp_path / "x.csv")).read()
    rows[line - 1] = f'{image}, "{COMMA}"'
    (tmp_path / "x.csv").write_text("\n".join(rows))
    splits = Table(str(tmp_path / "x.csv")).read()
    assert COMMA in splits.class_names
    assert [record.source for record in splits.train] == [
        str(tmp_path / f"{i}.png") for i in (1, 2, 3)
    ]


@pytest.mark.parametrize("heading", ["image,label", "image,label,,"])
@pytest.mark.parametrize("ends", [(",,", ""), ("", ",, "), (",", ",")])
def test_commas_at_the_end_of_a_line_hold_no_value(heading, ends, tmp_path):
    first, second = ends
    (tmp_path / "x.csv").write_text(f"{heading}\n1.png,cat{first}\n2.png,dog{second}\n")
    assert Table(str(tmp_path / "x.csv")).read().train == (
        (str(tmp_path / "1.png"), 0),
        (str(tmp_path / "2.png"), 1),
    )


def test_a_value_beyond_an_empty_heading_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text(f"image,label,\n1.png,{COMMA}\n")
    with world.refused(DataError, UNQUOTED.format(2)):
        Table(str(tmp_path / "x.csv")).read()


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "labels.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pip install 'kdpl\[parquet\]'"):
        Table(str(tmp_path / "labels.parquet")).read()
