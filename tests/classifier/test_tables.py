import pytest
import world

from kdpl.classifier.bulk import columns
from kdpl.classifier.tables import require_format, write_table
from kdpl.errors import ConfigError
from kdpl.tasks import MULTI_CLASS, DecisionRule

ROWS = [
    {"path": 'a, "b"\nc.png', "class": "=1+1", "probability": 1.0, "error": None},
    {"path": "é.png", "class": None, "probability": None, "error": "cannot be read"},
    {"path": "-x.png", "class": "cat", "probability": 0.123457, "error": None},
]


def test_several_labels_and_their_scores_are_text_in_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    row = {"path": "a.png", "labels": "cat;dog", "scores": "0.9;0.8", "unknown": 0.5, "error": None}
    write_table(tmp_path / "t.parquet", [row], list(row))
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == [row]


def test_a_large_table_is_written_in_parts(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("kdpl.classifier.tables._ROW_GROUP", 2)
    write_table(tmp_path / "t.parquet", iter(ROWS), columns(MULTI_CLASS, 1, DecisionRule()))
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == ROWS


def test_the_endings_of_tables_are_named(tmp_path):
    match = r"unknown ending, expected one of \.csv, \.jsonl, \.parquet for a table: give another"
    with world.refused(ConfigError, match):
        require_format(tmp_path / "t.xlsx")
