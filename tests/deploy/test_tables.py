import csv
import json
import sys

import pyarrow.parquet
import pytest
import world

from kdpl.deploy import tables
from kdpl.deploy.journal import columns
from kdpl.deploy.tables import require_format, write_table
from kdpl.errors import ConfigError

ROWS = [
    {"path": 'a, "b"\nc.png', "class": "=1+1", "probability": 1.0, "error": None},
    {"path": "é.png", "class": None, "probability": None, "error": "cannot be read"},
    {"path": "-x.png", "class": "cat", "probability": 0.123457, "error": None},
]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_rows_are_read_back_as_they_were(ending, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_ROW_GROUP", 2)
    path = tmp_path / f"t{ending}"
    write_table(path, iter(ROWS), columns(1))
    if ending == ".parquet":
        table = pyarrow.parquet.read_table(path)
        assert table.column_names == columns(1)
        assert table.to_pylist() == ROWS
    else:
        assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == ROWS


def test_csv_is_quoted_where_it_must_be_and_changes_no_name(tmp_path):
    write_table(tmp_path / "t.csv", ROWS, columns(1))
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [row["path"] for row in read] == [row["path"] for row in ROWS]
    assert [row["class"] for row in read] == ["=1+1", "", "cat"]
    assert [row["probability"] for row in read] == ["1.000000", "", "0.123457"]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_no_rows_are_a_table_too(ending, tmp_path):
    write_table(tmp_path / f"t{ending}", [], columns(1))
    assert (tmp_path / f"t{ending}").exists()


@pytest.mark.parametrize("name", ["t.xlsx", "t", "t.CSV.gz"])
def test_an_unknown_ending_is_named(name, tmp_path):
    with pytest.raises(ConfigError, match=r"unknown ending, expected one of \.csv, \.jsonl, \.parquet") as error:
        require_format(tmp_path / name)
    assert world.one_sentence(error)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    require_format(tmp_path / "t.csv")
    with pytest.raises(ConfigError, match=r"pip install 'kdpl\[parquet\]'") as error:
        require_format(tmp_path / "t.parquet")
    assert world.one_sentence(error)
