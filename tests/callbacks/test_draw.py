import shutil

import pytest
from PIL import Image
from runs import configs, fit_teacher, image_folder
from runs import test as run_test

from kdpl.__main__ import main


def size_of(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


def test_a_fit_and_a_test_leave_pictures_and_say_where(teacher_run, student_run, capsys):
    names = {run: sorted(p.name for p in (run / "figures").iterdir()) for run in (teacher_run, student_run)}
    assert names[teacher_run] == ["confusion.png", "learning_curves.png"]
    assert names[student_run] == ["confusion.png", "disagreements.png", "learning_curves.png", "test_images.png"]
    for path in student_run.glob("figures/*"):
        assert min(size_of(path)) > 300
    assert run_test(teacher_run) == 0
    assert f"picture: {teacher_run}/figures/confusion.png" in capsys.readouterr().err


def test_without_matplotlib_it_says_so_and_all_else_works(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kdpl.callbacks.draw.can_draw", lambda: False)
    assert fit_teacher(tmp_path / "out", "--trainer.max_epochs=1") == 0
    assert "pip install 'kdpl[quickstart]'" in capsys.readouterr().err
    assert run_test(tmp_path / "out") == 0
    assert (tmp_path / "out" / "test.json").is_file()
    assert not (tmp_path / "out" / "figures").exists()


def test_a_student_whose_teacher_is_gone_or_was_not_tested_has_no_sheet(tmp_path, student_run, capsys):
    copy = tmp_path / "student"
    shutil.copytree(student_run, copy)
    shutil.rmtree(copy / "figures")
    gone = [f"--out={copy}", f"--model.init_args.teacher={tmp_path / 'gone'}"]
    assert main(["test", f"--config={student_run}/config.yaml", *gone]) == 0
    assert sorted(p.name for p in (copy / "figures").iterdir()) == ["confusion.png"]


@pytest.mark.parametrize("name", ["$x_{$ & co"])
def test_without_validation_images_and_with_odd_names_pictures_are_drawn(name, tmp_path):
    image_folder(tmp_path / "data", classes=(name, "other"))
    data = [*configs("data/folder.yaml"), f"--data.init_args.root={tmp_path / 'data'}", "--data.init_args.shots=4"]
    assert fit_teacher(tmp_path / "out", *data, "--data.init_args.num_workers=0") == 0
    assert run_test(tmp_path / "out") == 0
    assert sorted(p.name for p in (tmp_path / "out/figures").iterdir()) == ["confusion.png", "learning_curves.png"]
