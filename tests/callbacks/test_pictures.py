import shutil

import numpy as np
import pytest
from PIL import Image
from runs import configs, fit_teacher, image_folder
from runs import test as run_test

from kdpl.__main__ import main
from kdpl.callbacks.pictures import choose_for_sheet, draw_confusion, draw_curves, draw_sheet
from kdpl.runtime.predictions import ImagePrediction

CURVES = {
    "epoch": [(9, 0.0), (19, 1.0), (29, 2.0)],
    "train/loss": [(9, 2.0), (19, 1.0), (29, 0.5)],
    "val/acc": [(9, 0.3), (29, 0.9)],
}


def predictions_of(labels, predictions, names):
    return [
        ImagePrediction(i, f"{i}.png", names[y], names[p], 0.5 + 0.1 * (i % 5))
        for i, (y, p) in enumerate(zip(labels, predictions, strict=True))
    ]


def pairs_of(teacher, student, names=("a", "b")):
    labels = [0] * len(teacher)
    return list(zip(predictions_of(labels, teacher, names), predictions_of(labels, student, names), strict=True))


def pixels(path, at_least=(300, 250)):
    """Pixels of a PNG of sensible size that is not of one colour."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width >= at_least[0]
        assert image.height >= at_least[1]
        assert max(image.size) < 4000
        array = np.asarray(image.convert("RGB"))
    assert array.std() > 1
    return array


def noise(n, size=32):
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (size, size, 3), dtype=np.uint8)) for _ in range(n)]


def all_differ(pictures):
    return not any(a.shape == b.shape and (a == b).all() for i, a in enumerate(pictures) for b in pictures[:i])


def test_curves_show_their_values_and_leave_out_what_was_not_measured(tmp_path):
    shown = [
        CURVES,
        {**CURVES, "train/loss": [(9, 0.5), (19, 1.0), (29, 2.0)]},
        {**CURVES, "val/acc": [(9, 0.9), (29, 0.3)]},
        {**CURVES, "val/base_acc": [(9, 0.5), (29, 0.7)], "val/novel_acc": [(9, 0.2), (29, 0.3)]},
        {"epoch": [(9, 0.0)], "train/loss": [(9, 1.0)]},
        {},
    ]
    for i, curves in enumerate(shown):
        draw_curves(curves, tmp_path / f"{i}.png")
    assert all_differ([pixels(tmp_path / f"{i}.png", (900, 350)) for i in range(len(shown))])


def test_a_confusion_matrix_depends_on_the_predictions(tmp_path):
    names, labels = ["a", "b", "never seen"], [0, 0, 1, 1]
    for name, predictions in (("right", labels), ("wrong", [0, 0, 1, 2])):
        draw_confusion(predictions_of(labels, predictions, names), names, tmp_path / f"{name}.png")
    assert all_differ([pixels(tmp_path / "right.png"), pixels(tmp_path / "wrong.png")])


@pytest.mark.parametrize("count", [1, 17, 60])
def test_a_confusion_matrix_of_any_number_of_classes(tmp_path, count):
    names, labels = [f"class {i}" for i in range(count)], [*range(count)] * 2
    draw_confusion(predictions_of(labels, labels[::-1], names), names, tmp_path / "c.png")
    pixels(tmp_path / "c.png")


# matplotlib reads text between dollar signs as mathematics
@pytest.mark.parametrize("name", ["$x_{$", r"\$ { 100 % _#&^~", "very " * 20])
def test_names_are_drawn_as_they_are(tmp_path, name):
    names = (name, "other")
    draw_confusion(predictions_of([0, 1], [0, 0], names), names, tmp_path / "c.png")
    draw_sheet(noise(2), pairs_of([0, 1], [0, 0], names), "some", tmp_path / "s.png")
    pixels(tmp_path / "c.png")
    pixels(tmp_path / "s.png")


def test_a_sheet_shows_images_and_both_predictions(tmp_path):
    sheets = [
        (noise(9), pairs_of([0] * 9, [0] * 9)),
        (noise(9), pairs_of([0] * 9, [1] * 9)),
        (noise(9), pairs_of([1] * 9, [0] * 9)),
        (noise(9)[::-1], pairs_of([0] * 9, [0] * 9)),
        ([image.resize((20 + 40 * i, 30)) for i, image in enumerate(noise(9))], pairs_of([0] * 9, [0] * 9)),
        (noise(1), pairs_of([0], [1])),
    ]
    for i, (images, pairs) in enumerate(sheets):
        draw_sheet(images, pairs, "some", tmp_path / f"{i}.png")
    assert all_differ([pixels(tmp_path / f"{i}.png", (150, 150)) for i in range(len(sheets))])


def test_half_of_the_sheet_are_mistakes_of_either_and_the_rest_is_spread_evenly():
    pairs = pairs_of([int(i >= 90) for i in range(100)], [int(i < 30) for i in range(100)])
    chosen = choose_for_sheet(pairs, count=20)
    mistakes = [i for i in chosen if i < 30 or i >= 90]
    others = [i for i in chosen if i not in mistakes]
    assert chosen == sorted(set(chosen))
    assert len(mistakes) == len(others) == 10
    assert any(i >= 90 for i in mistakes)
    assert others == list(range(30, 90, 6))


@pytest.mark.parametrize(("images", "wrong", "shown"), [(0, 0, 0), (5, 0, 5), (5, 5, 5), (99, 1, 20), (99, 99, 10)])
def test_a_sheet_is_never_larger_than_asked_nor_than_there_are_images(images, wrong, shown):
    chosen = choose_for_sheet(pairs_of([0] * images, [1] * wrong + [0] * (images - wrong)), count=20)
    assert len(chosen) == len(set(chosen)) == shown


def test_a_fit_and_a_test_leave_pictures(teacher_run, student_run):
    names = {run: sorted(p.name for p in (run / "figures").iterdir()) for run in (teacher_run, student_run)}
    assert names[teacher_run] == ["confusion.png", "learning_curves.png"]
    assert names[student_run] == ["confusion.png", "disagreements.png", "learning_curves.png", "test_images.png"]
    for path in student_run.glob("figures/*"):
        pixels(path)


def test_without_matplotlib_it_says_so_and_all_else_works(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kdpl.callbacks.pictures.can_draw", lambda: False)
    image_folder(tmp_path / "data", classes=("$x_{$ & co", "other"))
    data = [*configs("data/folder.yaml"), f"--data.init_args.root={tmp_path / 'data'}", "--data.init_args.shots=4"]
    out = tmp_path / "out"
    assert fit_teacher(out, *data, "--data.init_args.num_workers=0", "--trainer.max_epochs=1") == 0
    assert "pip install 'kdpl[quickstart]'" in capsys.readouterr().err
    assert not (out / "figures").exists()
    monkeypatch.undo()
    assert run_test(out) == 0
    assert sorted(p.name for p in (out / "figures").iterdir()) == ["confusion.png"]
    assert f"picture: {out}/figures/confusion.png" in capsys.readouterr().err


def test_a_student_whose_teacher_is_gone_has_no_sheet(tmp_path, student_run):
    copy = tmp_path / "student"
    shutil.copytree(student_run, copy)
    shutil.rmtree(copy / "figures")
    gone = [f"--out={copy}", f"--model.init_args.teacher={tmp_path / 'gone'}"]
    assert main(["test", f"--config={student_run}/config.yaml", *gone]) == 0
    assert sorted(p.name for p in (copy / "figures").iterdir()) == ["confusion.png"]
