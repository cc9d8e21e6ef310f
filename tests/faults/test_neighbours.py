"""Commands at the same time in the same place, and a cache that is another's or has lost a part."""

import shutil
import subprocess
import sys

import pytest
from runs import DATA, STUDENT, configs, files_of, fit_student, folder_fit, image_folder, rows_of, wait_for

from kdpl.__main__ import main

SLOWLY = (
    "import sys, time; from kdpl.deploy import sources; from kdpl.__main__ import main; plain = sources.Item.open; "
    "sources.Item.open = lambda item: (time.sleep(0.2), plain(item))[1]; sys.exit(main(sys.argv[1:]))"
)


def last_line(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def test_a_second_predict_into_the_same_table_is_refused_and_the_first_unharmed(tmp_path, classifier, capsys):
    root, out = image_folder(tmp_path / "data", images=10), tmp_path / "answers.csv"
    predict = ["predict", str(classifier), str(root), f"--out={out}", "--batch-size=2", "--workers=1"]
    first = subprocess.Popen([sys.executable, "-c", SLOWLY, *predict], stderr=subprocess.PIPE, text=True)
    partial = tmp_path / "answers.csv.partial"
    wait_for(lambda: (partial.exists() and partial.stat().st_size > 0) or first.poll() is not None)
    assert main(predict) == 1
    assert first.poll() is None
    assert last_line(capsys) == f"error: another process is writing {out}: wait for it, or give another --out"
    _, err = first.communicate(timeout=60)
    assert first.returncode == 0, err
    rows = rows_of(out)
    assert len({row["path"] for row in rows}) == len(rows) == 40
    assert not any(row["error"] for row in rows)


@pytest.fixture(scope="module")
def cache(tmp_path_factory, teacher_run):
    """A cache of one view of all digits; no test changes it."""
    folder = tmp_path_factory.mktemp("filled") / "cache"
    place = [f"--model.init_args.teacher={teacher_run}", f"--data.init_args.teacher_cache={folder}"]
    assert main(["cache", *DATA, *STUDENT, *place, "--views=1", "--trainer.enable_progress_bar=false"]) == 0
    return folder


def test_a_cache_of_another_dataset_is_refused_by_fit_and_kept(tmp_path, cache, capsys):
    before = files_of(cache)
    root, teacher, out = image_folder(tmp_path / "data"), tmp_path / "teacher", tmp_path / "out"
    assert main(folder_fit(root, teacher)) == 0
    other = [*configs("data/folder.yaml"), f"--data.init_args.root={root}", f"--data.init_args.teacher_cache={cache}"]
    for fill in ("true", "false"):
        assert fit_student(out, teacher, *other, f"--data.init_args.fill_teacher_cache={fill}") == 1
        line = last_line(capsys)
        assert line.startswith("error: "), line
        assert str(cache) in line
        assert " there and " in line
        assert not (out / "checkpoints").exists()
    assert files_of(cache) == before


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("manifest.json", "(it has no manifest.json): choose another folder as data.init_args.teacher_cache"),
        ("shard-00000.bin", "is missing: remove shard-00000.bin and fill"),
    ],
)
def test_a_part_of_a_cache_that_is_gone_is_named_by_fit(part, words, tmp_path, teacher_run, cache, capsys):
    copy, out = tmp_path / "cache", tmp_path / "out"
    shutil.copytree(cache, copy)
    (copy / part).unlink()
    assert fit_student(out, teacher_run, "--trainer.max_epochs=1", f"--data.init_args.teacher_cache={copy}") == 1
    line = last_line(capsys)
    assert line.startswith("error: "), line
    assert str(copy) in line
    assert words in line
    assert not (out / "checkpoints").exists()
