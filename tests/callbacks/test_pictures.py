import numpy as np
import pytest
from PIL import Image

from kdpl.callbacks.pictures import choose_for_sheet, draw_confusion, draw_curves, draw_sheet
from kdpl.runtime.predictions import Answer

CURVES = {
    "epoch": [(9, 0.0), (19, 1.0), (29, 2.0)],
    "train/loss": [(9, 2.0), (19, 1.0), (29, 0.5)],
    "val/acc": [(9, 0.3), (29, 0.9)],
}


def answers_of(labels, predictions, names):
    return [
        Answer(i, f"{i}.png", names[y], names[p], 0.5 + 0.1 * (i % 5))
        for i, (y, p) in enumerate(zip(labels, predictions, strict=True))
    ]


def pixels(path, at_least=(300, 250)):
    """A picture's pixels, of a PNG of sensible size that is not of one colour."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width >= at_least[0]
        assert image.height >= at_least[1]
        assert max(image.size) < 4000
        array = np.asarray(image.convert("RGB"))
    assert array.std() > 1
    return array


def same(a, b):
    return a.shape == b.shape and bool((a == b).all())


def noise(n, size=32):
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (size, size, 3), dtype=np.uint8)) for _ in range(n)]


def test_curves_show_their_values(tmp_path):
    draw_curves(CURVES, tmp_path / "a.png")
    draw_curves({**CURVES, "train/loss": [(9, 0.5), (19, 1.0), (29, 2.0)]}, tmp_path / "loss.png")
    draw_curves({**CURVES, "val/acc": [(9, 0.9), (29, 0.3)]}, tmp_path / "acc.png")
    draw_curves(CURVES, tmp_path / "again.png")
    first = pixels(tmp_path / "a.png", (900, 350))
    assert same(first, pixels(tmp_path / "again.png"))
    assert not same(first, pixels(tmp_path / "loss.png"))
    assert not same(first, pixels(tmp_path / "acc.png"))


@pytest.mark.parametrize("curves", [{}, {"epoch": [(9, 0.0)], "train/loss": [(9, 1.0)]}], ids=["none", "no validation"])
def test_curves_that_were_not_measured_are_left_out(tmp_path, curves):
    draw_curves(curves, tmp_path / "a.png")
    pixels(tmp_path / "a.png")


def test_curves_of_base_and_novel_classes_are_drawn_each(tmp_path):
    both = {**CURVES, "val/base_acc": [(9, 0.5), (29, 0.7)], "val/novel_acc": [(9, 0.2), (29, 0.3)]}
    draw_curves(CURVES, tmp_path / "a.png")
    draw_curves(both, tmp_path / "b.png")
    assert not same(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_confusion_depends_on_the_answers(tmp_path):
    names = ["a", "b", "c"]
    labels = [0, 0, 1, 1, 2, 2]
    draw_confusion(answers_of(labels, labels, names), names, tmp_path / "right.png")
    draw_confusion(answers_of(labels, [0, 0, 1, 1, 2, 0], names), names, tmp_path / "wrong.png")
    assert not same(pixels(tmp_path / "right.png"), pixels(tmp_path / "wrong.png"))


@pytest.mark.parametrize("count", [1, 16, 17, 60])
def test_confusion_of_any_number_of_classes(tmp_path, count):
    names = [f"class {i}" for i in range(count)]
    labels = list(range(count)) * 2
    draw_confusion(answers_of(labels, labels[::-1], names), names, tmp_path / "c.png")
    pixels(tmp_path / "c.png")


def test_confusion_takes_classes_without_test_images(tmp_path):
    names = ["$a$", "b", "never seen"]
    draw_confusion(answers_of([0, 1], [0, 2], names), names, tmp_path / "c.png")
    pixels(tmp_path / "c.png")


# matplotlib reads what stands between dollar signs as mathematics
@pytest.mark.parametrize("name", ["$x_{$", r"$\frac$", r"\$ { 100 % _#&^~", "very " * 20])
def test_names_are_shown_as_they_are_whatever_is_in_them(tmp_path, name):
    names = [name, "other"]
    answers = answers_of([0, 1, 0], [0, 0, 1], names)
    draw_confusion(answers, names, tmp_path / "c.png")
    draw_sheet(noise(3), answers, answers, tmp_path / "s.png")
    pixels(tmp_path / "c.png")
    pixels(tmp_path / "s.png")


def test_the_sheet_shows_images_and_both_answers(tmp_path):
    names = ["a", "b"]
    right, wrong = answers_of([0] * 9, [0] * 9, names), answers_of([0] * 9, [1] * 9, names)
    draw_sheet(noise(9), right, right, tmp_path / "a.png")
    draw_sheet(noise(9), right, wrong, tmp_path / "teacher.png")
    draw_sheet(noise(9), wrong, right, tmp_path / "student.png")
    draw_sheet(noise(9)[::-1], right, right, tmp_path / "images.png")
    sheets = [pixels(tmp_path / f"{name}.png") for name in ("a", "teacher", "student", "images")]
    assert not any(same(x, y) for i, x in enumerate(sheets) for y in sheets[:i])


@pytest.mark.parametrize("count", [1, 9])
def test_a_sheet_of_any_number_of_images_of_any_size(tmp_path, count):
    names = ["a", "b"]
    answers = answers_of([0] * count, [1] * count, names)
    images = [image.resize((20 + 40 * i, 30)) for i, image in enumerate(noise(count))]
    draw_sheet(images, answers, answers, tmp_path / "s.png")
    pixels(tmp_path / "s.png", (150, 150))


def test_half_of_the_sheet_are_mistakes_and_the_rest_is_spread_evenly():
    names = ["a", "b"]
    student = answers_of([0] * 100, [1 if i < 30 else 0 for i in range(100)], names)
    teacher = answers_of([0] * 100, [1 if i >= 90 else 0 for i in range(100)], names)
    chosen = choose_for_sheet(student, teacher, count=20)
    mistakes = [i for i in chosen if i < 30 or i >= 90]
    others = [i for i in chosen if i not in mistakes]
    assert chosen == sorted(set(chosen))
    assert len(mistakes) == len(others) == 10
    assert any(i >= 90 for i in mistakes), "the teacher's mistakes are mistakes too"
    assert others == list(range(30, 90, 6))


@pytest.mark.parametrize(("images", "wrong"), [(0, 0), (5, 0), (5, 5), (100, 1), (100, 100)])
def test_a_sheet_is_never_larger_than_asked_nor_than_what_there_is(images, wrong):
    names = ["a", "b"]
    student = answers_of([0] * images, [1] * wrong + [0] * (images - wrong), names)
    chosen = choose_for_sheet(student, student, count=20)
    assert len(chosen) <= min(20, images)
    assert len(set(chosen)) == len(chosen)
    if images <= 20 and wrong == 0:
        assert chosen == list(range(images))
