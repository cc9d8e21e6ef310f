import json

import pytest
from runs import rows_of
from world import refused

from kdpl.classifier import tables
from kdpl.classifier.bulk import columns
from kdpl.classifier.tables import Journal, write_table
from kdpl.errors import ConfigError
from kdpl.tasks import MULTI_CLASS, DecisionRule

ROWS = [
    {"path": 'a, "b"\nc.png', "class": "=1+1", "probability": 1.0, "error": None},
    {"path": "é.png", "class": None, "probability": None, "error": "cannot be read"},
    {"path": "-x.png", "class": "cat", "probability": 0.123457, "error": None},
]
JOB = {"classifier": "c", "images": "i", "top_k": 1}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "new" / "table.csv"


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_large_table_is_written_in_parts(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(tables, "_ROW_GROUP", 2)
    write_table(tmp_path / "t.parquet", iter(ROWS), columns(MULTI_CLASS, 1, DecisionRule()))
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == ROWS


def test_a_journal_keeps_rows_and_becomes_the_table(out):
    with Journal(out, JOB) as journal:
        assert (journal.done, journal.finished) == (0, False)
        journal.write(ROWS[:2])
    with Journal(out, JOB) as journal:
        assert journal.done == 2
        journal.write(ROWS[2:])
        journal.finish(columns(MULTI_CLASS, 1, DecisionRule()))
    assert [row["path"] for row in rows_of(out)] == [row["path"] for row in ROWS]
    assert json.loads((out.parent / "table.csv.job.json").read_text()) == JOB
    with Journal(out, JOB) as journal:
        assert journal.finished
    assert names_in(out.parent) == ["table.csv", "table.csv.job.json"]


def test_one_process_at_a_time_writes(out):
    with Journal(out, JOB), refused(ConfigError, "another process is writing"), Journal(out, JOB):
        pass


def test_a_table_of_another_job_is_not_resumed(out):
    with Journal(out, JOB) as journal:
        journal.write(ROWS)
    before = names_in(out.parent)
    for field in JOB:
        with refused(ConfigError, f"may differ in {field} from"), Journal(out, {**JOB, field: 9}):
            pass
    assert names_in(out.parent) == before


@pytest.mark.parametrize("note", [None, "", "[]", "{}"])
def test_a_table_of_an_unknown_job_is_left_alone(note, out):
    out.parent.mkdir()
    out.write_text("precious")
    if note is not None:
        (out.parent / "table.csv.job.json").write_text(note)
    with refused(ConfigError, "may differ in"), Journal(out, JOB):
        pass
    assert out.read_text() == "precious"
