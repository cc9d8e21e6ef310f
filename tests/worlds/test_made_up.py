"""Worlds of letters and of pages of digits, and how the miniature CLIPs are trained on them."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.worlds import letters, pages
from benchmarks.worlds.pretrain import contrastive_loss

# the first that ships all fonts
pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    ("source", "quarters"),
    [
        ("letters/000/a", [161.5, 154.7, 153.1, 163.5]),
        ("letters/065/m", [179.2, 178.6, 162.1, 161.3]),
        ("letters/119/z", [163.0, 156.6, 165.3, 154.7]),
    ],
)
def test_images_stay_those_that_figures_are_measured_on(source, quarters):
    pixels = np.asarray(letters.open_letter(source), dtype=float)
    # versions of FreeType and of the JPEG decoder may round differently
    assert pixels.reshape(2, 16, 2, 16, 3).mean((1, 3, 4)).ravel() == pytest.approx(quarters, abs=1)


def rows_of(table):
    with table.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    contents = {(table.parent / row["image"]).read_bytes() for row in rows}
    assert len(contents) == len(rows), "none comes twice"
    return rows, contents


def test_each_page_has_one_to_five_digits_and_their_names_and_is_the_same_each_time(tmp_path):
    few = {"train": 30, "val": 5, "test": 10}
    table, again = (pages.write_pages(tmp_path / name, few) for name in ("a", "b"))
    rows, contents = rows_of(table)
    assert contents == rows_of(again)[1]
    assert [row["split"] for row in rows] == [split for split, n in few.items() for _ in range(n)]
    for row in rows:
        assert 1 <= len(row["label"].split(",")) <= 5
        assert Image.open(table.parent / row["image"]).size == (pages.SIZE, pages.SIZE)


def plain_loss(logits, classes):
    """InfoNCE with several images per text, image by image and text by text."""
    to_text = [
        -torch.log(row.softmax(dim=0)[index]) for row, index in zip(logits, classes, strict=True)
    ]
    texts = classes.unique().tolist()
    to_image = [-logits[:, text].log_softmax(dim=0)[classes == text].mean() for text in texts]
    return (sum(to_text) / len(to_text) + sum(to_image) / len(to_image)) / 2


def test_the_contrastive_loss_equals_the_plain_one():
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(12, 6, generator=generator, dtype=torch.float64)
    classes = torch.tensor([0, 0, 1, 3, 3, 3, 3, 5, 5, 1, 0, 5])
    torch.testing.assert_close(contrastive_loss(logits, classes), plain_loss(logits, classes))
