import random

import numpy as np
import pytest
import world

from kdpl.data.sampling import few_shot, generator, require_shots
from kdpl.data.splits import Record
from kdpl.errors import DataError


def test_stream_is_philox_at_its_documented_key_and_counter():
    literal = np.random.Generator(np.random.Philox(key=7 + (0 << 64), counter=(5 << 64) + (3 << 128)))
    assert generator(7, "augmentation", epoch=3, index=5).random(4).tolist() == literal.random(4).tolist()


def test_every_key_has_its_own_stream_whatever_the_order_of_calls():
    keys = [(s, p, e, i) for s in range(3) for p in ("augmentation", "order") for e in range(3) for i in range(3)]
    forward, backward = (
        {key: generator(*key[:2], epoch=key[2], index=key[3]).random() for key in order} for order in (keys, keys[::-1])
    )
    assert forward == backward
    assert len(set(forward.values())) == len(keys)


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


def test_too_few_images_name_class_found_expected_and_what_to_do():
    with world.refused(DataError, "class 'dog' has 1 training images where shots asks for 2: lower shots, or"):
        require_shots(records("", [0, 0, 1, 0, 2]), ["cat", "dog"], 2)
    require_shots(records("", [0, 0, 1, 0, 1]), ["cat", "dog"], 2)
