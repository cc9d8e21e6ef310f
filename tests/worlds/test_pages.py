"""Pages of digits, several labels each."""

import csv

from PIL import Image

from benchmarks.worlds import pages

FEW = {"train": 30, "val": 5, "test": 10}


def rows_of(table):
    with table.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["split"] for row in rows] == [split for split, n in FEW.items() for _ in range(n)]
    contents = {(table.parent / row["image"]).read_bytes() for row in rows}
    assert len(contents) == len(rows), "none comes twice"
    return rows, contents


def test_each_page_has_one_to_five_digits_and_their_names_and_is_the_same_each_time(tmp_path):
    table, again = (pages.write_pages(tmp_path / name, FEW) for name in ("a", "b"))
    rows, contents = rows_of(table)
    assert contents == rows_of(again)[1]
    for row in rows:
        assert 1 <= len(row["label"].split(",")) <= 5
        assert Image.open(table.parent / row["image"]).size == (pages.SIZE, pages.SIZE)
