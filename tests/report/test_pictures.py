import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from matplotlib.font_manager import findfont, get_font
from PIL import Image
from runs import noise

from kdpl.errors import DataError
from kdpl.report.pictures import (
    DrawPictures,
    choose_for_sheet,
    draw_confusion,
    draw_sheet,
    font_families,
)
from kdpl.report.run_folder import Run
from kdpl.runtime.predictions import ImagePrediction
from kdpl.student import StudentDistillation


@pytest.fixture(autouse=True)
def _drawn(draw, monkeypatch):
    monkeypatch.setattr("kdpl.report.pictures._save", draw)


def predictions_of(labels, predictions, names):
    return [
        ImagePrediction(i, f"{i}.png", names[y], names[p], 0.5 + 0.1 * (i % 5), y, p)
        for i, (y, p) in enumerate(zip(labels, predictions, strict=True))
    ]


def pairs_of(teacher, student, names=("a", "b")):
    rows = (predictions_of([0] * len(teacher), given, names) for given in (teacher, student))
    return list(zip(*rows, strict=True))


def pixels(path):
    """Pixels of a PNG of sensible size that is not of one colour."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 150
        assert max(image.size) < 4000
        array = np.asarray(image.convert("RGB"))
    assert array.std() > 1
    return array


def confusion(labels, predictions, names):
    return lambda path: draw_confusion(predictions_of(labels, predictions, names), names, path)


def sheet(images, *predictions):
    return lambda path: draw_sheet(images, pairs_of(*predictions), "some", path)


RIGHT, WRONG, NAMES, MANY = [0, 0], [1, 1], ["a", "b", "never seen"], list(range(60))
IMAGES = [noise(32, 32, seed=seed) for seed in range(2)]
PICTURES = {
    "confusion": [
        confusion([0, 0, 1, 1], [0, 0, 1, 1], NAMES),
        confusion([0, 0, 1, 1], [0, 0, 1, 2], NAMES),
        confusion([0, 0], [0, 0], ["one"]),
        confusion(MANY, MANY[::-1], [f"class {i}" for i in MANY]),
    ],
    "sheet": [
        sheet(IMAGES, RIGHT, RIGHT),
        sheet(IMAGES, RIGHT, WRONG),
        sheet(IMAGES, WRONG, RIGHT),
        sheet(IMAGES[::-1], RIGHT, RIGHT),
        sheet([IMAGES[0], IMAGES[1].resize((320, 30))], RIGHT, RIGHT),
        sheet(IMAGES[:1], [0], [1]),
    ],
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_show_what_they_are_drawn_of(kind, tmp_path):
    drawn = []
    for draw in PICTURES[kind]:
        draw(tmp_path / "picture.png")
        drawn.append(pixels(tmp_path / "picture.png"))
    assert not any(np.array_equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_names_are_drawn_as_they_are(tmp_path):
    # matplotlib reads text between dollar signs as mathematics
    names = ("$x_{$", r"\$ { 100 % _#&^~", "very " * 20)
    confusion([0, 1, 2], [0, 0, 1], names)(tmp_path / "c.png")
    draw_sheet([*IMAGES, IMAGES[0]], pairs_of([0, 1, 2], [0, 0, 1], names), "s", tmp_path / "s.png")
    pixels(tmp_path / "c.png")
    pixels(tmp_path / "s.png")


def test_characters_that_the_font_lacks_are_taken_from_an_installed_one(monkeypatch, capsys):
    other = findfont("STIXGeneral")
    lacking = set(get_font(other).get_charmap()) - set(
        get_font(findfont("DejaVu Sans")).get_charmap()
    )
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [other])
    assert font_families(("cat", chr(min(lacking)))) == ["DejaVu Sans", "STIXGeneral"]
    assert not capsys.readouterr().err
    assert font_families(("cat", "\U000e0fff")) == ["DejaVu Sans"]
    assert "no installed font" in capsys.readouterr().err


def test_half_of_the_sheet_are_mistakes_of_either_and_the_rest_is_spread_evenly():
    pairs = pairs_of([int(i >= 90) for i in range(100)], [int(i < 30) for i in range(100)])
    chosen = choose_for_sheet(pairs, count=20)
    mistakes = [i for i in chosen if i < 30 or i >= 90]
    assert chosen == sorted(set(chosen))
    assert len(mistakes) == 10
    assert any(i >= 90 for i in mistakes)
    assert [i for i in chosen if i not in mistakes] == list(range(30, 90, 6))


@pytest.mark.parametrize(
    ("images", "wrong", "shown"), [(0, 0, 0), (5, 0, 5), (5, 5, 5), (99, 1, 20), (99, 99, 10)]
)
def test_a_sheet_is_never_larger_than_asked_nor_than_there_are_images(images, wrong, shown):
    chosen = choose_for_sheet(
        pairs_of([0] * images, [1] * wrong + [0] * (images - wrong)), count=20
    )
    assert len(chosen) == len(set(chosen)) == shown


def test_a_fit_and_a_test_leave_pictures(teacher_run, student_run):
    names = {
        run: sorted(p.name for p in (run / "figures").iterdir())
        for run in (teacher_run, student_run)
    }
    assert names[teacher_run] == ["confusion.png"]
    assert names[student_run] == ["confusion.png", "test_images.png"]
    for path in student_run.glob("figures/*"):
        pixels(path)


@pytest.fixture
def draw_test(tmp_path, student_run, capsys):
    """Draws the test of a student whose folder has no figures yet; returns their names and what was said."""
    folder = shutil.copytree(
        student_run, tmp_path / "student", ignore=shutil.ignore_patterns("figures")
    )
    run = Run.find(folder)
    trainer = SimpleNamespace(
        datamodule=run.data, default_root_dir=folder, loggers=[], is_global_zero=True
    )

    def draw(teacher=run.teacher.folder):
        DrawPictures().on_test_end(trainer, Mock(StudentDistillation, teacher_folder=teacher))
        return sorted(p.name for p in folder.glob("figures/*")), capsys.readouterr().err

    return draw


@pytest.mark.parametrize(
    ("target", "value", "said"),
    [
        ("kdpl.report.pictures.find_spec", lambda _: None, "pip install 'kdpl[quickstart]'"),
        (
            "kdpl.data.datamodule.DomainDataModule.class_names",
            [*map(str, range(201))],
            "no picture of the confusions of 201 classes",
        ),
        (
            "kdpl.report.pictures.draw_confusion",
            Mock(side_effect=MemoryError("no memory")),
            "confusion.png (no memory)",
        ),
        (
            "kdpl.data.datamodule.DomainDataModule.test_item",
            Mock(side_effect=DataError("image 0.png is gone")),
            "cannot draw pictures of the test (image 0.png is gone)",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said_and_does_not_end_the_test(
    target, value, said, draw_test, monkeypatch
):
    monkeypatch.setattr("kdpl.report.pictures.draw_sheet", Mock())
    monkeypatch.setattr(target, value)
    names, err = draw_test()
    assert said in err
    assert names == (["confusion.png"] if "test_item" in target else [])


def test_without_its_teachers_test_a_student_has_no_sheet(draw_test, tmp_path):
    assert draw_test(tmp_path / "gone")[0] == ["confusion.png"]


def test_the_title_of_a_sheet_counts_what_it_shows(draw_test, monkeypatch):
    monkeypatch.setattr("kdpl.report.pictures.draw_confusion", Mock())
    monkeypatch.setattr("kdpl.report.pictures.draw_sheet", sheet := Mock())
    draw_test()
    _, pairs, title, _ = sheet.call_args.args
    wrong = [pair for pair in pairs if not (pair[0].correct and pair[1].correct)]
    shown = f"{len(pairs)} of 899 test images, {len(wrong)} of them misclassified"
    assert title.startswith(shown)
