import csv
import json

import pytest

from kdpl.runtime.predictions import (
    PREDICTIONS_FILE,
    RESULTS_FILE,
    Answer,
    read_answers,
    read_results,
    write_answers,
    write_results,
)

ANSWERS = [
    Answer(2, "digits:2", "a", "b", 0.5),
    Answer(0, "folder/with, comma.png", 'say "cheese", please', "line\nbreak", 0.25),
    Answer(1, "ü.png", "猫", "a", 1.0),
]


def test_answers_come_back_in_order_of_the_test_split_whatever_their_names(tmp_path):
    write_answers(tmp_path, ANSWERS)
    assert read_answers(tmp_path) == sorted(ANSWERS, key=lambda a: a.index)


def test_a_path_that_is_no_utf8_comes_back_and_a_class_name_that_is_none_is_refused(tmp_path):
    answers = [Answer(0, "photos/\udcff.png", "a", "a", 1.0)]
    write_answers(tmp_path, answers)
    assert read_answers(tmp_path) == answers
    file = tmp_path / PREDICTIONS_FILE
    assert b"photos/\xff.png" in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(b",a,a,", b",a,\xff,"))
    with pytest.raises(ValueError, match="utf-8"):
        read_answers(tmp_path)


def test_the_file_is_csv_as_others_read_it(tmp_path):
    write_answers(tmp_path, ANSWERS)
    with (tmp_path / PREDICTIONS_FILE).open(newline="", encoding="utf-8") as file:
        header, first, *_ = csv.reader(file)
    assert header == ["index", "source", "label", "prediction", "probability"]
    assert first == ["0", "folder/with, comma.png", 'say "cheese", please', "line\nbreak", "0.250000"]


def test_accuracies_come_back_to_the_last_digit_beside_the_number_of_images(tmp_path):
    write_results(tmp_path, 3, {"test/acc": 1 / 3, "test/hm": 0.1})
    assert read_results(tmp_path) == {"images": 3, "test/acc": 1 / 3, "test/hm": 0.1}
    assert json.loads((tmp_path / RESULTS_FILE).read_text(encoding="utf-8"))["test/acc"] == 1 / 3


def test_a_folder_that_was_not_tested_has_no_answers_and_no_accuracies(tmp_path):
    assert read_answers(tmp_path) == []
    assert read_results(tmp_path) == {}


def test_a_second_test_replaces_the_first_and_leaves_nothing_else(tmp_path):
    for answers, accuracy in ((ANSWERS, 0.0), (ANSWERS[:1], 1.0)):
        write_answers(tmp_path, answers)
        write_results(tmp_path, len(answers), {"test/acc": accuracy})
    assert read_answers(tmp_path) == ANSWERS[:1]
    assert read_results(tmp_path) == {"images": 1, "test/acc": 1.0}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([PREDICTIONS_FILE, RESULTS_FILE])


def test_nothing_half_written_stays_when_writing_answers_fails(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("kdpl.runtime.predictions.csv.writer", fail)
    with pytest.raises(OSError, match="disk full"):
        write_answers(tmp_path, ANSWERS)
    assert list(tmp_path.iterdir()) == []
