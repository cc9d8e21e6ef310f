"""Pages of digits, and collages of photographs, several labels each."""

import csv

import numpy as np
import pytest
from PIL import Image

from benchmarks.worlds import collages, pages

FEW = {"train": 30, "val": 5, "test": 10}
COLORS = {"hat": (255, 0, 0), "shoes": (0, 0, 255)}


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


@pytest.fixture(name="photographs")
def _photographs(tmp_path):
    """Photographs as they are prepared: two of each of two classes, and one without a label."""
    folder = tmp_path / "photographs"
    for split in FEW:
        for name, color in COLORS.items():
            (folder / split / name).mkdir(parents=True)
            for number in (1, 2):
                Image.new("RGB", (60, 120), color).save(folder / split / name / f"{number}.jpg")
    (folder / "unlabeled").mkdir()
    Image.new("RGB", (90, 120), (0, 128, 0)).save(folder / "unlabeled" / "3.jpg")
    (folder / "unlabeled.csv").write_text("image,class\n3.jpg,skirt\n")
    return folder


def test_each_collage_shows_the_classes_that_the_table_names(photographs, tmp_path):
    table = collages.write_collages(photographs, tmp_path / "collages", FEW)
    colors = COLORS | {"skirt": (0, 128, 0)}
    for row in rows_of(table)[0]:
        with Image.open(table.parent / row["image"]) as image:
            pixels = np.asarray(image, dtype=int)
        assert pixels.shape == (collages.SIZE, collages.SIZE, 3)
        near = {name: abs(pixels - color).sum(axis=2) < 30 for name, color in colors.items()}
        assert row["label"] == ",".join(name for name in near if near[name].any()) != ""
