"""Collages of photographs, several labels each."""

import csv

import numpy as np
import pytest
from PIL import Image

from benchmarks.worlds import collages

FEW = {"train": 30, "val": 5, "test": 10}
COLORS = {"hat": (255, 0, 0), "shoes": (0, 0, 255)}


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


def test_training_alone_has_the_unlabelled_photographs_with_their_classes(photographs):
    found = collages.read_photographs(photographs)
    both = ["hat", "hat", "shoes", "shoes"]
    assert [label for _, label in found["train"]] == [*both, "skirt"]
    for split in ("val", "test"):
        assert [label for _, label in found[split]] == both
        assert {file.parent.parent.name for file, _ in found[split]} == {split}


def test_each_collage_shows_the_classes_that_the_table_names(photographs, tmp_path):
    table = collages.write_collages(photographs, tmp_path / "collages", FEW)
    with table.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["split"] for row in rows] == [split for split, n in FEW.items() for _ in range(n)]
    colors = COLORS | {"skirt": (0, 128, 0)}
    for row in rows:
        with Image.open(table.parent / row["image"]) as image:
            pixels = np.asarray(image, dtype=int)
        assert pixels.shape == (collages.SIZE, collages.SIZE, 3)
        shown = [
            name for name, color in colors.items() if (abs(pixels - color).sum(axis=2) < 30).any()
        ]
        assert row["label"] == ",".join(shown) != ""


def test_collages_are_the_same_each_time_and_none_comes_twice(photographs, tmp_path):
    first, second = (
        collages.write_collages(photographs, tmp_path / name, FEW).parent for name in ("a", "b")
    )
    images = sorted(path.relative_to(first) for path in first.rglob("*.jpg"))
    contents = [(first / image).read_bytes() for image in images]
    assert contents == [(second / image).read_bytes() for image in images]
    assert len({*contents}) == len(contents) == 45


def test_photographs_keep_their_shape_in_tiles_of_their_own(photographs):
    test = collages.read_photographs(photographs)["test"]
    half = collages.SIZE // 2
    counts = set()
    for seed in range(20):
        collage, _ = collages.draw_collage(test, np.random.default_rng(seed))
        shown = np.asarray(collage)[:, :, 1] < 128
        tiles = [shown[y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
        taken = [np.nonzero(tile) for tile in tiles if tile.any()]
        counts.add(len(taken))
        for rows, columns in taken:
            height = np.ptp(rows) + 1
            assert 0.75 * half <= height <= half
            assert abs(np.ptp(columns) + 1 - height / 2) <= 1
    assert counts == {1, 2, 3, 4}
