import pytest

from kdpl.data.sampling import spread
from kdpl.runtime.predictions import (
    ImagePrediction,
    read_predictions,
    read_results,
    write_predictions,
    write_results,
)
from kdpl.runtime.run_folder import PREDICTIONS_FILE, RESULTS_FILE

PREDICTIONS = [
    ImagePrediction(2, "digits:2", "a", "b", 0.5, 0, 1),
    ImagePrediction(0, "folder/with, comma.png", 'say "cheese", please', "line\nbreak", 0.25, 2, 3),
    ImagePrediction(1, "photos/\udcff.png", "猫", "a", 1.0, 4, 0),
]


def test_predictions_are_read_in_order_of_the_test_split_whatever_their_names(tmp_path):
    assert read_predictions(tmp_path) == []
    write_predictions(tmp_path, PREDICTIONS)
    assert read_predictions(tmp_path) == sorted(PREDICTIONS, key=lambda p: p.index)
    header, *_ = (tmp_path / PREDICTIONS_FILE).read_bytes().splitlines()
    assert header == b"index,source,label,prediction,probability,label_number,prediction_number"


def test_accuracies_are_read_to_the_last_digit_and_a_second_test_replaces_them(tmp_path):
    assert read_results(tmp_path) == {}
    for accuracy in (0.5, 1 / 3):
        write_results(tmp_path, 3, {"test/acc": accuracy, "test/hm": 0.1})
    assert read_results(tmp_path) == {"images": 3, "test/acc": 1 / 3, "test/hm": 0.1}
    assert [path.name for path in tmp_path.iterdir()] == [RESULTS_FILE]


@pytest.mark.parametrize(("items", "count", "chosen"), [(9, 3, [0, 3, 6]), (2, 5, [0, 1])])
def test_items_are_spread_evenly(items, count, chosen):
    assert spread(range(items), count) == chosen
