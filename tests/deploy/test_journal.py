import json

import pytest
import world

from kdpl.deploy.journal import Journal, columns
from kdpl.errors import ConfigError

JOB = {"classifier": "c", "images": "i", "top_k": 1}


def row(i):
    return {"path": f"{i}é\n.png", "class": "cat", "probability": 0.5, "error": None}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "new" / "answers.csv"


def test_rows_are_read_back_and_counted_by_the_next_one(out):
    with Journal(out, JOB) as journal:
        assert (journal.done, journal.finished) == (0, False)
        journal.write([row(0), row(1)])
        assert list(journal.rows()) == [row(0), row(1)]
    with Journal(out, JOB) as journal:
        assert journal.done == 2
        journal.write([row(2)])
        assert list(journal.rows()) == [row(0), row(1), row(2)]
    assert json.loads((out.parent / "answers.csv.job.json").read_text()) == JOB


@pytest.mark.parametrize("cut", range(0, 130, 9))
def test_a_line_that_was_cut_off_is_written_again(cut, out):
    with Journal(out, JOB) as journal:
        journal.write([row(0), row(1)])
        whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:cut])
    with Journal(out, JOB) as journal:
        assert journal.done == whole[:cut].count(b"\n")
        journal.write([row(i) for i in range(journal.done, 3)])
        assert list(journal.rows()) == [row(0), row(1), row(2)]


def test_one_process_at_a_time_writes(out):
    with Journal(out, JOB) as journal:
        with pytest.raises(ConfigError, match="another process is writing") as error:
            Journal(out, JOB)
        assert world.one_sentence(error)
        journal.write([row(0)])
    with Journal(out, JOB) as journal:
        assert journal.done == 1


@pytest.mark.parametrize("field", JOB)
@pytest.mark.parametrize("finished", [True, False])
def test_answers_to_something_else_are_not_gone_on_with(field, finished, out):
    with Journal(out, JOB) as journal:
        journal.write([row(0)])
    if finished:
        journal.path.rename(out)
    with pytest.raises(ConfigError, match=f"differ in {field} from") as error:
        Journal(out, {**JOB, field: 9})
    assert world.one_sentence(error)
    with Journal(out, JOB) as journal:
        assert journal.finished == finished


@pytest.mark.parametrize("note", [None, "", "[]", "{}"])
def test_a_table_that_nothing_is_known_of_is_left_alone(note, out):
    out.parent.mkdir()
    out.write_text("precious")
    if note is not None:
        (out.parent / "answers.csv.job.json").write_text(note)
    with pytest.raises(ConfigError, match=r"answers\.csv (is there and nothing says|has answers that differ)") as error:
        Journal(out, JOB)
    assert world.one_sentence(error)
    assert out.read_text() == "precious"


def test_a_finished_table_says_so_and_what_a_kill_left_beside_it_goes(out):
    with Journal(out, JOB) as journal:
        journal.write([row(0)])
    out.write_text("whole")
    with Journal(out, JOB) as journal:
        assert journal.finished
    assert sorted(path.name for path in out.parent.iterdir()) == ["answers.csv", "answers.csv.job.json"]


def test_guesses_beyond_the_first_are_numbered():
    assert columns(1) == ["path", "class", "probability", "error"]
    assert columns(2) == ["path", "class", "probability", "class_2", "probability_2", "error"]
