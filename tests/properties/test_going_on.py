import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import text

from kdpl.deploy.sources import part_of, printable
from kdpl.deploy.tables import Journal
from kdpl.runtime.files import atomic_path

JOB = {"classifier": "c", "images": "i", "top_k": 1}


@given(st.lists(text(max_size=3), max_size=40), st.integers(1, 12))
def test_the_parts_one_after_another_are_all_sources(sources, count):
    parts = [part_of(sources, f"{number}/{count}") for number in range(1, count + 1)]
    assert [source for part in parts for source in part] == sources
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


names = st.lists(text(max_size=4).map(printable), max_size=8)
cuts = st.lists(st.tuples(st.integers(1, 3), st.floats(0, 1)), max_size=4)


@given(names, cuts, st.integers(1, 3))
def test_a_table_that_was_cut_at_any_byte_has_each_row_once_in_the_end(names, cuts, at_once):
    rows = [{"path": f"{i} {name}", "class": name, "probability": 0.5, "error": None} for i, name in enumerate(names)]

    def go_on(out, most):
        """As ``predict`` does: leave out what is done, write the rest in groups."""
        with Journal(out, JOB) as journal:
            assert list(journal.rows()) == rows[: journal.done]
            for start in range(journal.done, len(rows), at_once)[:most]:
                journal.write(rows[start : start + at_once])
            return journal.path, list(journal.rows())

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answers.csv"
        for groups, share in cuts:
            path, _ = go_on(out, groups)
            if path.exists():
                content = path.read_bytes()
                path.write_bytes(content[: round(share * len(content))])
        _, there = go_on(out, None)
        assert there == rows


class Interrupted(BaseException):
    """A process that is asked to end at that point."""


def content_of(path):
    """All that is at a path: bytes of a file, files of a folder by name, or None."""
    if not path.is_dir():
        return path.read_bytes() if path.exists() else None
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def put(path, content):
    """Write what ``content_of`` gives, in steps; yields after each."""
    if isinstance(content, dict):
        path.mkdir()
        yield
        for name, each in content.items():
            (path / name).write_bytes(each[: len(each) // 2])
            yield
            (path / name).write_bytes(each)
            yield
    elif content is not None:
        path.write_bytes(content[: len(content) // 2])
        yield
        path.write_bytes(content)
        yield


files = st.binary(max_size=8)
folders = st.dictionaries(st.sampled_from(["a", "b", ".c"]), files, max_size=3)
# what replaces a folder or a file is of its own kind
changes = st.tuples(st.none() | files, files) | st.tuples(st.none() | folders, folders)
errors = st.sampled_from([ValueError, OSError, Interrupted])


@given(changes, st.integers(0, 8), errors)
def test_an_exception_while_something_is_written_leaves_what_was_there(change, steps, error):
    old, new = change
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "thing"
        list(put(path, old))
        expected = new
        try:
            with atomic_path(path) as temporary:
                for step, _ in enumerate(put(temporary, new)):
                    assert content_of(path) == old, "nothing is seen before it is whole"
                    if step == steps:
                        raise error
        except error:
            expected = old
        assert content_of(path) == expected
        assert [each.name for each in Path(name).iterdir()] == ["thing"] * (expected is not None)


CALLS = ("replace", "rename", "chmod", "touch", "rglob", "is_dir")


@pytest.mark.parametrize("call", CALLS)
@given(change=changes, number=st.integers(1, 3), error=errors)
def test_an_exception_in_the_last_steps_leaves_what_was_there(call, change, number, error):
    old, new = change
    plain, calls = getattr(Path, call), 0

    def failing(self, *args, **options):
        nonlocal calls
        calls += 1
        if calls == number:
            raise error
        return plain(self, *args, **options)

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        path = Path(name) / "thing"
        list(put(path, old))
        expected = new
        try:
            with atomic_path(path) as temporary:
                list(put(temporary, new))
                patch.setattr(Path, call, failing)
        except error:
            expected = old
        patch.undo()
        assert content_of(path) == expected
        assert [each.name for each in Path(name).iterdir()] == ["thing"] * (expected is not None)


@given(folders)
def test_a_block_that_writes_nothing_leaves_what_was_there(old):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "thing"
        list(put(path, old))
        with pytest.raises(FileNotFoundError), atomic_path(path):
            pass
        assert content_of(path) == old
        shutil.rmtree(path)
