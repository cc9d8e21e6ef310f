import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpl.data.decoding import open_image
from kdpl.data.labels import Labels
from kdpl.data.sampling import (
    few_shot,
    generator,
    hold_out,
    keep_apart,
    share_of,
    with_labels,
)
from kdpl.data.splits import Record, Splits

CLASSES = 5

# so many images of each class, in any order
labels = st.lists(st.integers(0, 8), min_size=CLASSES, max_size=CLASSES).flatmap(
    lambda counts: st.permutations(
        [label for label, count in enumerate(counts) for _ in range(count)]
    )
)
shots = st.sampled_from([1, 2, 3, 4, 5, 6, None])
seeds = st.integers(0, 2**31)
shares = st.floats(0.01, 0.99)


@pytest.mark.parametrize(("purpose", "number"), [("augmentation", 0), ("order", 1), ("share", 2)])
def test_stream_is_philox_at_its_documented_key_and_counter(purpose, number):
    philox = np.random.Philox(key=7 + (number << 64), counter=(5 << 64) + (3 << 128))
    expected = np.random.Generator(philox).random(4)
    assert generator(7, purpose, epoch=3, index=5).random(4).tolist() == expected.tolist()


def records(folder, labels):
    return [Record(f"/{folder}/{i}.png", label) for i, label in enumerate(labels)]


def counts(records):
    return Counter(record.label for record in records)


def community_sample(train, val, k, val_shots, seed):
    """The rule as written."""
    draw, samples = random.Random(seed), []  # noqa: S311
    for split, shots in ((train, k), (val, min(k, val_shots) if k and val_shots else val_shots)):
        sample = [] if shots else split
        for label in dict.fromkeys(record.label for record in split) if shots else ():
            items = [record for record in split if record.label == label]
            sample.extend(draw.sample(items, shots) if len(items) >= shots else items)
        samples.append(sample)
    return tuple(samples)


@settings(max_examples=100)
@given(labels, labels, labels, shots, shots, seeds)
def test_sample_is_the_communitys_for_the_seed(train, val, other, shots, val_shots, seed):
    train, val, other = (records("x", part) for part in (train, val, other))
    sample = few_shot(train, val, shots, val_shots, seed)
    assert sample == community_sample(train, val, shots, val_shots, seed)
    # whatever is validated on
    assert few_shot(train, other, shots, val_shots, seed)[0] == sample[0]


def test_sample_of_seed_1_by_hand():
    # in Python 3.11 to 3.13, after random.seed(1): random.sample(range(5), 2) gives [1, 0] and then [2, 0]
    train = records("", [1] * 5 + [0] * 5)
    assert few_shot(train, [], 2, 4, seed=1)[0] == [train[i] for i in (1, 0, 7, 5)]


@given(st.integers(1, 2000), labels)
def test_base_and_novel_classes_share_nothing_and_leave_nothing_out(num_classes, labels):
    read = SimpleNamespace(class_names=range(num_classes))
    base = Labels(read, "base_to_novel", None, None, False, 1).num_base
    assert 0 <= base - (num_classes - base) <= 1
    images = records("test", labels)
    half = 3
    parts = with_labels(images, range(half)), with_labels(images, range(half, CLASSES))
    assert {*parts[0]}.isdisjoint(parts[1])
    assert sorted([*parts[0], *parts[1]]) == sorted(images)
    for part in parts:
        assert part == sorted(part, key=images.index)


@given(st.integers(1, 200), shares, shares, seeds)
def test_a_smaller_share_is_within_a_larger_one(num_images, share, other, seed):
    small, large = (share_of(num_images, each, seed) for each in sorted((share, other)))
    assert set(small) <= set(large) <= set(range(num_images))
    for drawn, of in ((small, min(share, other)), (large, max(share, other))):
        assert list(drawn) == sorted(set(drawn))
        assert len(drawn) == max(1, round(of * num_images))
    assert list(small) == list(share_of(num_images, min(share, other), seed))


def dataset(labels, unlabeled):
    train = records("train", labels)
    places = None if unlabeled is None else tuple(f"/train/{i}.png" for i in unlabeled)
    names = tuple(f"class {label}" for label in range(CLASSES))
    return Splits("here", names, tuple(train), (), (), places, open_image)


@given(labels, st.none() | st.lists(st.integers(0, 40), min_size=5), shares)
def test_what_is_held_out_is_tested_on_and_nothing_else(labels, unlabeled, share):
    before = dataset(labels, unlabeled)
    after = hold_out(before, share)
    train, test = set(after.train), set(after.test)
    assert train.isdisjoint(test)
    assert train | test == set(before.train)
    for label, count in counts(before.train).items():
        assert counts(after.test)[label] == min(count - 1, max(1, round(share * count)))
    assert after == hold_out(before, share)
    assert after.unlabeled == before.unlabeled
    assert not after.test or hold_out(after, share) is after
    apart, number = keep_apart(after)
    tested = {record.source for record in test}
    if unlabeled is None:
        assert (apart, number) == (after, 0)
    else:
        assert [*apart.unlabeled] == [path for path in before.unlabeled if path not in tested]
        assert number == len(before.unlabeled) - len(apart.unlabeled)
