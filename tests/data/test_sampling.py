import random

import pytest

from kdpl.data.sampling import base_count, few_shot, require_shots
from kdpl.data.splits import Record
from kdpl.errors import DataError


def records(prefix, labels):
    return [Record(f"{prefix}{i}", label) for i, label in enumerate(labels)]


def community_sample(train, val, k, seed):
    """The rule as written, with the global stream."""
    state = random.getstate()
    random.seed(seed)
    samples = []
    for split, shots in ((train, k), (val, min(k, 4))):
        labels_in_order = []
        for record in split:
            if record.label not in labels_in_order:
                labels_in_order.append(record.label)
        sample = []
        for label in labels_in_order:
            items = [record for record in split if record.label == label]
            if len(items) >= shots:
                items = random.sample(items, shots)
            sample.extend(items)
        samples.append(sample)
    random.setstate(state)
    return tuple(samples)


TRAIN = records("train/", [3, 0, 0, 3, 1, 2, 0, 1, 1, 3, 0, 1, 2, 3, 0, 3, 1, 3, 0, 1] * 2)
VAL = records("val/", [1, 1, 0, 2, 1, 3, 1, 1, 3, 0, 0, 3, 3, 3, 0, 0])


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 2, 4, 5, 8])
def test_sample_is_the_communitys_for_the_seed(seed, k):
    assert few_shot(TRAIN, VAL, k, 4, seed) == community_sample(TRAIN, VAL, k, seed)


def test_sample_of_seed_1_by_hand():
    # in Python 3.11 to 3.13, after random.seed(1): random.sample(range(5), 2) gives [1, 0] and then [2, 0]
    train = records("", [1] * 5 + [0] * 5)
    sample, _ = few_shot(train, [], 2, 4, seed=1)
    assert sample == [Record("1", 1), Record("0", 1), Record("7", 0), Record("5", 0)]


def test_class_with_fewer_images_is_taken_whole_and_draws_nothing():
    train = records("a", [0, 0, 1, 1, 1, 1, 1])
    without = few_shot([record for record in train if record.label == 1], [], 3, 4, 1)[0]
    assert few_shot(train, [], 3, 4, 1)[0] == train[:2] + without


def test_validation_is_capped_by_shots_and_by_val_shots():
    def counts(shots, val_shots):
        val = few_shot(TRAIN, VAL, shots, val_shots, 1)[1]
        return [sum(record.label == label for record in val) for label in range(4)]

    assert counts(2, 4) == [2, 2, 1, 2]
    assert counts(8, 4) == [4, 4, 1, 4]
    assert counts(8, 3) == [3, 3, 1, 3]
    assert counts(None, 3) == [3, 3, 1, 3]
    assert counts(8, None) == [5, 5, 1, 5]


def test_no_shots_takes_the_list_as_it_is():
    assert few_shot(TRAIN, VAL, None, None, 1) == (TRAIN, VAL)


@pytest.mark.parametrize(("num_classes", "expected"), [(2, 1), (10, 5), (37, 19), (47, 24), (101, 51), (1000, 500)])
def test_base_is_the_first_half_rounded_up(num_classes, expected):
    assert base_count(num_classes) == expected


def test_too_few_images_name_class_found_expected_and_what_to_do():
    with pytest.raises(DataError) as raised:
        require_shots(records("", [0, 0, 1, 0, 2]), ["cat", "dog"], 2)
    assert str(raised.value) == (
        "class 'dog' has 1 training images where shots asks for 2: "
        "lower shots, or set allow_fewer_shots: true to take what there is"
    )
    require_shots(records("", [0, 0, 1, 0, 1]), ["cat", "dog"], 2)
