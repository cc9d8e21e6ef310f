import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from kdpl.runtime.files import (
    append,
    atomic_path,
    cut_to_whole_lines,
    read_rows,
    write_rows,
    write_text,
)


def test_a_text_that_cannot_be_written_leaves_the_earlier_file(tmp_path):
    write_text(tmp_path / "a.txt", "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "after \ud800")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_a_file_in_a_new_folder_is_written_beside_its_place(tmp_path):
    with atomic_path(tmp_path / "deep" / "a.txt") as temporary:
        temporary.write_text("complete")
        assert temporary.parent.parent == tmp_path / "deep", (
            "a rename across file systems is not atomic"
        )
    assert [path.read_text() for path in (tmp_path / "deep").iterdir()] == ["complete"]


@pytest.mark.parametrize("folder", [False, True])
def test_what_has_its_name_is_on_the_disk(folder, tmp_path, monkeypatch):
    written = set()
    fsync = os.fsync

    def note(descriptor):
        assert not (tmp_path / "a").exists()
        written.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()).rpartition("/a")[2])
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with atomic_path(tmp_path / "a") as temporary:
        if folder:
            (temporary / "deep").mkdir(parents=True)
            (temporary / "deep" / "file").write_text("b")
        else:
            temporary.write_text("a")
    assert written == {"/deep/file" if folder else ""}


@pytest.mark.parametrize(
    ("folder", "existing", "fails"),
    [
        (False, True, False),
        (False, False, True),
        (True, False, False),
        (True, True, False),
        (True, True, True),
    ],
)
def test_what_was_there_stays_until_it_is_replaced_as_a_whole(folder, existing, fails, tmp_path):
    def write(path, text):
        if folder:
            path.mkdir()
            path /= text
        path.write_text(text)

    def content():
        files = filter(Path.is_file, tmp_path.rglob("*"))
        return {str(path.relative_to(tmp_path)): path.read_text() for path in files}

    if existing:
        write(tmp_path / "a", "old")
    before = content()
    expecting = pytest.raises(KeyboardInterrupt) if fails else nullcontext()
    with expecting, atomic_path(tmp_path / "a") as temporary:
        write(temporary, "new")
        if fails:
            raise KeyboardInterrupt
    assert content() == (before if fails else {"a/new" if folder else "a": "new"})
    assert [path.name for path in tmp_path.iterdir()] == ["a"] * (existing or not fails)


@pytest.mark.parametrize(
    ("first", "at_once", "kept"), [(0, 1, "ab\ncd\ne\n"), (1, 2, "ab\ncd\ne\n"), (0, 2, "ab\ncd\n")]
)
def test_text_is_appended_and_what_is_unfinished_removed(first, at_once, kept, tmp_path):
    file = tmp_path / "lines"
    append(file, "ab\ncd\n")
    append(file, "e\nf")
    assert cut_to_whole_lines(file, first, at_once) == kept.count("\n")
    assert file.read_text() == kept


def test_the_earlier_file_keeps_its_name_until_the_rename_itself(tmp_path, monkeypatch):
    file, before = tmp_path / "a", []
    file.write_text("old")
    rename = Path.replace

    def noted(temporary, target):
        before.append(target.read_text() if target.exists() else None)
        return rename(temporary, target)

    monkeypatch.setattr(Path, "replace", noted)
    with atomic_path(file) as temporary:
        temporary.write_text("new")
    assert before == ["old"]
    assert file.read_text() == "new"


def test_rows_are_read_as_they_were_written_with_any_path(tmp_path):
    path = os.fsdecode(b"a, \xff\n.png")
    write_rows(tmp_path / "rows.csv", [("image", "label"), (path, "ü")])
    assert read_rows(tmp_path / "rows.csv") == [{"image": path, "label": "ü"}]
