import pytest
from runs import DATA, STUDENT, TEACHER, error_line, files_of

from kdpl.__main__ import main

pytestmark = pytest.mark.usefixtures("without_companions")


def settings(teacher, cache):
    quiet = ["--trainer.max_epochs=2", "--trainer.enable_progress_bar=false"]
    teacher = [f"--model.init_args.teacher={teacher}", f"--model.init_args.teacher_cache={cache}"]
    return [*DATA, *STUDENT, *quiet, *teacher]


def fill(teacher, cache, *more):
    return main(["cache", *settings(teacher, cache), *more])


@pytest.fixture(scope="module")
def filled(tmp_path_factory, teacher_run):
    """A cache of two views of all digits; no test changes it."""
    cache = tmp_path_factory.mktemp("filled") / "cache"
    assert fill(teacher_run, cache, "--out=elsewhere") == 0
    assert [path.name for path in cache.parent.iterdir()] == ["cache"]
    return cache


def test_a_second_start_says_complete_and_changes_nothing(filled, teacher_run, capsys):
    before = files_of(filled)
    assert fill(teacher_run, filled) == 0
    assert "complete, 700 images, 2 views of each: nothing to do" in capsys.readouterr().err
    assert fill(teacher_run, filled, "--trainer.max_epochs=1", "--views=2") == 0
    assert fill(teacher_run, filled, "--views=3") == 1
    error_line(capsys, f"{filled} was made from something else (views is 2 there and 3")
    after = files_of(filled)
    # whose time changes whenever an older filelock takes it
    before.pop(".lock"), after.pop(".lock")
    assert after == before


def test_callbacks_and_target_of_the_fit_play_no_part(filled, teacher_run, tmp_path, capsys):
    fidelity = ["--trainer.callbacks+=kdpl.targets.fidelity.Fidelity"]
    refined = ["--model.init_args.target=refined"]
    assert fill(teacher_run, tmp_path / "cache", *fidelity, *refined) == 0
    assert "complete, 700 images, 2 views of each" in capsys.readouterr().err
    for shard in filled.glob("*.npy"):
        assert (tmp_path / "cache" / shard.name).read_bytes() == shard.read_bytes()
    assert not [*(tmp_path / "cache").glob("*targets*")]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "cache needs the settings of a student's fit"),
        ([*DATA, *STUDENT, "--model.init_args.teacher=t"], "give --model.init_args.teacher_cache"),
        ([*DATA, *TEACHER], "expected those of a student"),
        (settings("t", "c"), "t/class_vectors.safetensors does not exist"),
        (["--views=0", *DATA], "views"),
    ],
)
def test_wrong_settings_are_one_line_and_write_nothing(args, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["cache", *args]) == 1
    error_line(capsys, words)
    assert not list(tmp_path.iterdir())
