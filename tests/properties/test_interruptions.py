import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from texts import text

from kdpl.deploy.sources import printable
from kdpl.deploy.tables import Journal
from kdpl.runtime.files import atomic_path

JOB = {"classifier": "c", "images": "i", "top_k": 1}


names = st.lists(text(max_size=4).map(printable), max_size=8)
cuts = st.lists(st.tuples(st.integers(1, 3), st.floats(0, 1)), max_size=4)


@given(names, cuts, st.integers(1, 3))
def test_a_table_that_is_truncated_at_any_byte_has_each_row_once_in_the_end(names, cuts, at_once):
    rows = [{"path": f"{i} {name}", "class": name, "probability": 0.5, "error": None} for i, name in enumerate(names)]

    def resume(out, most):
        """As ``predict`` does: leave out the rows that are written, write the rest in groups."""
        with Journal(out, JOB) as journal:
            assert list(journal.rows()) == rows[: journal.done]
            for start in range(journal.done, len(rows), at_once)[:most]:
                journal.write(rows[start : start + at_once])
            return journal.path, list(journal.rows())

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "predictions.csv"
        for groups, share in cuts:
            path, _ = resume(out, groups)
            if path.exists():
                content = path.read_bytes()
                path.write_bytes(content[: round(share * len(content))])
        assert resume(out, None)[1] == rows


class Interrupted(BaseException):
    """The process is interrupted at that point."""


def content_of(path):
    """The content of a path: bytes of a file, files of a folder by name, or None."""
    if not path.is_dir():
        return path.read_bytes() if path.exists() else None
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def put(path, content):
    """Write what ``content_of`` returns, in steps; yields after each."""
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


@given(change=changes, number=st.integers(0, 8), error=errors)
def test_an_exception_before_any_step_of_writing_leaves_what_was_there(change, number, error):
    old, new = change
    with tempfile.TemporaryDirectory() as name:
        path, expected = Path(name) / "thing", new
        list(put(path, old))
        try:
            with atomic_path(path) as temporary:
                for step, _ in enumerate(put(temporary, new)):
                    assert content_of(path) == old, "nothing is seen before it is complete"
                    if step == number:
                        raise error
        except error:
            expected = old
        assert content_of(path) == expected
        assert [each.name for each in Path(name).iterdir()] == ["thing"] * (expected is not None)
