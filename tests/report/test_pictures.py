import re
import shutil

import numpy as np
import pytest
from matplotlib.font_manager import findfont, get_font
from PIL import Image
from runs import fit_teacher, noise
from runs import test as run_test

from kdpl.errors import DataError
from kdpl.report.pictures import (
    choose_for_sheet,
    draw_confusion,
    draw_sheet,
    font_families,
)
from kdpl.runtime.predictions import ImagePrediction
from kdpl.runtime.run_folder import RESULTS_FILE


@pytest.fixture(autouse=True)
def _drawn(draw, monkeypatch):
    monkeypatch.setattr("kdpl.report.pictures._save", draw)


def predictions_of(labels, predictions, names):
    return [
        ImagePrediction(i, f"{i}.png", names[y], names[p], 0.5 + 0.1 * (i % 5), y, p)
        for i, (y, p) in enumerate(zip(labels, predictions, strict=True))
    ]


def pairs_of(teacher, student, names=("a", "b")):
    labels = [0] * len(teacher)
    return list(
        zip(
            predictions_of(labels, teacher, names),
            predictions_of(labels, student, names),
            strict=True,
        )
    )


def noises(n):
    return [noise(32, 32, seed=seed) for seed in range(n)]


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


RIGHT, WRONG, NAMES, MANY = [0] * 9, [1] * 9, ["a", "b", "never seen"], list(range(60))
PICTURES = {
    "confusion": [
        confusion([0, 0, 1, 1], [0, 0, 1, 1], NAMES),
        confusion([0, 0, 1, 1], [0, 0, 1, 2], NAMES),
        confusion([0, 0], [0, 0], ["one"]),
        confusion(MANY, MANY[::-1], [f"class {i}" for i in MANY]),
    ],
    "sheet": [
        sheet(noises(9), RIGHT, RIGHT),
        sheet(noises(9), RIGHT, WRONG),
        sheet(noises(9), WRONG, RIGHT),
        sheet(noises(9)[::-1], RIGHT, RIGHT),
        sheet([image.resize((20 + 40 * i, 30)) for i, image in enumerate(noises(9))], RIGHT, RIGHT),
        sheet(noises(1), [0], [1]),
    ],
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_show_what_they_are_drawn_of(kind, tmp_path):
    drawn = []
    for draw in PICTURES[kind]:
        draw(tmp_path / "picture.png")
        drawn.append(pixels(tmp_path / "picture.png"))
    assert not any(
        a.shape == b.shape and (a == b).all() for i, a in enumerate(drawn) for b in drawn[:i]
    )


# matplotlib reads text between dollar signs as mathematics
@pytest.mark.parametrize("name", ["$x_{$", r"\$ { 100 % _#&^~", "very " * 20])
def test_names_are_drawn_as_they_are(tmp_path, name):
    confusion([0, 1], [0, 0], (name, "other"))(tmp_path / "c.png")
    sheet(noises(2), [0, 1], [0, 0], (name, "other"))(tmp_path / "s.png")
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


def test_without_matplotlib_it_says_so_and_all_else_works(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kdpl.report.pictures.find_spec", lambda _: None)
    assert fit_teacher(tmp_path, "--trainer.max_epochs=1") == run_test(tmp_path) == 0
    assert "pip install 'kdpl[quickstart]'" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()


def test_a_picture_that_fails_or_would_be_too_large_does_not_end_the_test(
    tmp_path, teacher_run, monkeypatch, capsys
):
    def broken(*_):
        raise MemoryError("no memory for that")

    for attribute, value, said in (
        ("draw_confusion", broken, r"warning: cannot draw \S+confusion.png \(no memory for that\)"),
        ("_MOST_CLASSES", 3, "no picture of the confusions of"),
    ):
        monkeypatch.setattr(f"kdpl.report.pictures.{attribute}", value)
        copy = tmp_path / attribute
        shutil.copytree(teacher_run, copy, ignore=shutil.ignore_patterns("figures", RESULTS_FILE))
        assert run_test(copy, f"--out={copy}") == 0
        assert re.search(said, capsys.readouterr().err)
        assert (copy / RESULTS_FILE).is_file()
        assert not (copy / "figures/confusion.png").exists()


def test_an_image_that_is_gone_does_not_end_the_test(tmp_path, student_run, monkeypatch, capsys):
    copy = tmp_path / "student"
    shutil.copytree(student_run, copy, ignore=shutil.ignore_patterns("figures", RESULTS_FILE))

    def gone(*_):
        raise DataError("image 0.png does not exist: restore it")

    monkeypatch.setattr("kdpl.data.datamodule.DomainDataModule.test_item", gone)
    assert run_test(copy, f"--out={copy}") == 0
    assert (
        "warning: cannot draw pictures of the test (image 0.png does not exist"
        in capsys.readouterr().err
    )
    assert (copy / RESULTS_FILE).read_bytes() == (student_run / RESULTS_FILE).read_bytes()


def test_a_student_is_tested_from_its_folder_alone_without_a_sheet(tmp_path, student_run):
    copy = tmp_path / "student"
    shutil.copytree(student_run, copy, ignore=shutil.ignore_patterns("figures", RESULTS_FILE))
    assert run_test(copy, f"--out={copy}", f"--model.init_args.teacher={tmp_path / 'gone'}") == 0
    assert sorted(p.name for p in (copy / "figures").iterdir()) == ["confusion.png"]
    assert (copy / RESULTS_FILE).read_bytes() == (student_run / RESULTS_FILE).read_bytes()


def test_the_title_of_a_sheet_counts_what_it_shows(tmp_path, student_run, monkeypatch):
    titles = {}
    monkeypatch.setattr(
        "kdpl.report.pictures.draw_sheet", lambda *args: titles.update({args[3].stem: args[1:3]})
    )
    copy = tmp_path / "student"
    shutil.copytree(student_run, copy, ignore=shutil.ignore_patterns("figures", RESULTS_FILE))
    assert run_test(copy, f"--out={copy}") == 0
    pairs, title = titles["test_images"]
    wrong = [pair for pair in pairs if not all(each.correct for each in pair)]
    assert (
        title
        == f"{len(pairs)} of 899 test images, {len(wrong)} of them misclassified by teacher or student"
    )
