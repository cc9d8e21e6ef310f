import os
from pathlib import Path

import pytest
import world
from runs import noise

from kdpl.data.readers.table import Table
from kdpl.errors import DataError

ROWS = """image,label,split
a/1.png,sea dog,train
a/2.png,cat,
b/3.png,,
b/4.png,cat,val
b/5.png,sea dog,test
b/6.png,,train
"""


def test_rows_become_splits_in_their_order_and_those_without_a_label_are_unlabelled(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text(ROWS)
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
        unlabeled = [os.path.relpath(source, tmp_path) for source in splits.unlabeled]
        assert unlabeled == ["b/3.png", "b/6.png", *further]
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
    ("rows", "names", "untested", "tested"),
    [
        ("image\n1.png\n2.png\n", ("tench", "ant"), 2, []),
        ("image,label\n1.png,\n2.png,\n", ("tench", "ant"), 2, []),
        ("image,label,split\n1.png,,\n2.png,,train\n3.png,n1,test\n", ("tench", "ant"), 2, [1]),
        # a table for tests alone keeps the order of its labels
        ("image,label,split\n1.png,n1,test\n2.png,n2,test\n", ("ant", "tench"), 0, [0, 1]),
    ],
)
def test_without_a_labelled_training_image_the_classes_are_listed_in_a_file(
    rows, names, untested, tested, tmp_path
):
    (tmp_path / "images.csv").write_text(rows)
    (tmp_path / "names.csv").write_text("n2,tench\nn1,ant\n")
    splits = Table(str(tmp_path / "images.csv"), class_names=str(tmp_path / "names.csv")).read()
    assert (splits.class_names, splits.train) == (names, ())
    expected = [str(tmp_path / name) for name in ("1.png", "2.png")[:untested]]
    assert list(splits.unlabeled or ()) == expected
    assert [record.label for record in splits.test] == tested


def test_what_is_not_such_a_table_is_one_sentence(tmp_path):
    twice = b"image,label,split\n1.png,a,train\n./1.png,b,test\n"
    for name, content, match in (
        ("x.csv", b"file,label\n1.png,cat\n", "has no column 'image' but file, label"),
        ("x.csv", b"image,label\n,cat\n", "row 1 of .* names no image"),
        ("x.csv", b"image,label,split\n1.png,cat,training\n", "row 1 .* has split 'training'"),
        ("x.csv", twice, "row 2 of .* again, .*train"),
        ("x.csv", b"image,label\n", "no row with a label: "),
        ("x.csv", b'image,label\n1.png,"cat\n2.png,dog\n', "line 3 of .* cannot be read"),
        ("x.csv", b"image,label\n1.png,cat\n2.png,K\xe4tzchen\n", r"UTF-8 \(line 3\)"),
        ("x.txt", b"image,label", "of an unknown kind"),
    ):
        (tmp_path / name).write_bytes(content)
        with world.refused(DataError, match):
            Table(str(tmp_path / name)).read()
    with world.refused(DataError, "y.csv does not exist: give the table"):
        Table(str(tmp_path / "y.csv")).read()


def test_a_comma_in_a_label_is_refused_without_quotes(tmp_path):
    file = tmp_path / "x.csv"
    rows = ["1.png,Prunus avium", "", "2.png,Prunus padus, wild cherry"]
    for heading in ("image,label", "image,label,"):  # also beyond an empty heading
        file.write_text("\n".join([heading, *rows]))
        with world.refused(DataError, "line 4 of .*x.csv has 3 values, expected 2"):
            Table(str(file)).read()
    file.write_text('image,label\n1.png, "Prunus padus, wild cherry"\n')
    assert Table(str(file)).read().class_names == ("Prunus padus, wild cherry",)


@pytest.mark.parametrize("heading", ["image,label", "image,label,,"])
@pytest.mark.parametrize(("first", "second"), [(",,", ""), ("", ",, ")])
def test_commas_at_the_end_of_a_line_hold_no_value(heading, first, second, tmp_path):
    (tmp_path / "x.csv").write_text(f"{heading}\n1.png,cat{first}\n2.png,dog{second}\n")
    records = Table(str(tmp_path / "x.csv")).read().train
    assert [(Path(source).name, label) for source, label in records] == [("1.png", 0), ("2.png", 1)]
