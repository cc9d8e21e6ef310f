"""Pages of digits, several labels each."""

import csv

import numpy as np
from PIL import Image

from benchmarks.worlds import pages
from kdpl.data.readers.digits import read_digits

FEW = {"train": 30, "val": 5, "test": 10}


def rows_of(table):
    with table.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_each_page_has_one_to_five_digits_and_their_names(tmp_path):
    table = pages.write_pages(tmp_path / "pages", FEW)
    rows = rows_of(table)
    assert [row["split"] for row in rows] == [split for split, n in FEW.items() for _ in range(n)]
    for row in rows:
        assert 1 <= len(row["label"].split(",")) <= 5
        assert Image.open(table.parent / row["image"]).size == (pages.SIZE, pages.SIZE)


def test_pages_are_the_same_each_time_and_none_comes_twice(tmp_path):
    first, second = (pages.write_pages(tmp_path / name, FEW).parent for name in ("a", "b"))
    images = sorted(path.relative_to(first) for path in first.rglob("*.png"))
    contents = [(first / image).read_bytes() for image in images]
    assert contents == [(second / image).read_bytes() for image in images]
    assert len({*contents}) == len(contents) == 45


def test_a_page_of_one_digit_shows_that_digit_alone(monkeypatch):
    monkeypatch.setattr(pages, "MOST_DIGITS", 1)
    digits = read_digits().test
    for seed in range(20):
        page, labels = pages.draw_page(digits[:1], np.random.default_rng(seed))
        assert labels == [digits[0].label]
        rows, columns, _ = np.nonzero(np.asarray(page) > 128)
        assert 5 < np.ptp(rows) < 20
        assert np.ptp(columns) < 20
