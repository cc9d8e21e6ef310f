"""Worlds that figures are measured on: their images, and the miniature CLIPs of photographs."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.worlds import letters, pages
from benchmarks.worlds.photographs.projections import Classifier, choose_settings, fit_projections


def require_quarters(image, means):
    """Require the mean levels of an image's quarters; versions of libraries may round differently."""
    pixels, half = np.asarray(image, dtype=float), image.width // 2
    quarters = pixels.reshape(2, half, 2, half, 3).mean((1, 3, 4)).ravel()
    assert quarters == pytest.approx(means, abs=1)


@pytest.mark.parametrize(
    ("source", "quarters"),
    [
        ("letters/000/a", [161.5, 154.7, 153.1, 163.5]),
        ("letters/065/m", [179.2, 178.6, 162.1, 161.3]),
        ("letters/119/z", [163.0, 156.6, 165.3, 154.7]),
    ],
)
def test_letters_stay_those_that_figures_are_measured_on(source, quarters):
    # the first that ships all fonts
    pytest.importorskip("matplotlib")
    require_quarters(letters.open_letter(source), quarters)


def test_pages_stay_those_that_figures_are_measured_on(tmp_path):
    table = pages.write_pages(tmp_path / "pages", {"train": 2, "test": 1})
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    shown = [("two,three,seven,nine", "train"), ("one,two,four,six", "train")]
    shown.append(("one,eight,nine", "test"))
    assert [(row["label"], row["split"]) for row in rows] == shown
    quarters = [[23.7, 24.1, 22.5, 35.7], [24.3, 0.4, 39.5, 19.6], [2.5, 49.3, 31.2, 0.0]]
    for row, means in zip(rows, quarters, strict=True):
        require_quarters(Image.open(table.parent / row["image"]), means)


def test_clips_of_photographs_stay_those_that_figures_are_measured_with():
    draw = np.random.RandomState(0)
    texts = 0.7 + draw.randn(30, 6)
    rows = texts @ draw.randn(6, 9) + 0.3 * draw.randn(30, 9)
    given = rows, draw.randn(30), texts, 0.5 + draw.randn(40, 9)
    *classifier, features = (torch.from_numpy(values).float() for values in given)
    classifier = Classifier(*classifier)
    # by ridge regression in one space, without a root, one image and one text at a time
    for ridge, cosines in (
        (0.1, [[0.219232, 0.467972, -0.007893], [-0.178115, -0.603861, -0.096669]]),
        (3.0, [[0.380193, 0.456901, 0.117305], [-0.280826, -0.640159, -0.201801]]),
    ):
        made = fit_projections(classifier, features.mean(dim=0), ridge)
        near = made.cosines(features[:2], classifier.texts[:3])
        torch.testing.assert_close(near, torch.tensor(cosines), rtol=1e-4, atol=1e-5)
    # by the cross-entropy on the classes that a fold leaves out, of settings that are near
    assert choose_settings(classifier, features, (0.01, 30.0), (6.0, 40.0), folds=5) == (0.01, 6.0)
