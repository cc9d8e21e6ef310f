"""Groups of images, such as those of one camera: no group is in two splits that are drawn, and samples spread over them."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kdpl.data.sampling import few_shot, held_out_of, hold_out
from kdpl.data.splits import Record, Splits
from kdpl.data.survey import FoundImage, set_aside

# images in order, each with its class and its group; 0: none
IMAGES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=60)
SETS = st.lists(
    st.tuples(st.frozensets(st.integers(0, 3), max_size=3), st.integers(0, 6)),
    min_size=1,
    max_size=40,
)
SHARES = st.floats(0.05, 0.95)


def listed(images):
    records = [Record(f"{i}.png", label) for i, (label, _) in enumerate(images)]
    groups = {f"{i}.png": f"camera {group}" for i, (_, group) in enumerate(images) if group}
    return records, groups


def groups_of(records, groups):
    return {groups.get(source, source) for source, _ in records}


def classes_of(records):
    labels = [label if isinstance(label, tuple) else (label,) for _, label in records]
    return {each for own in labels for each in own}


@given(IMAGES | SETS.map(lambda rows: [(tuple(sorted(own)), group) for own, group in rows]), SHARES)
def test_what_is_held_out_shares_no_group_and_no_class_is_lost(images, share):
    records, groups = listed(images)
    splits = Splits("x", tuple("abcd"), tuple(records), (), (), None, open, groups=groups)
    divided = hold_out(splits, share)
    assert not groups_of(divided.train, groups) & groups_of(divided.test, groups)
    assert {*divided.train} | {*divided.test} == {*records}
    if groups:
        assert classes_of(divided.train) == classes_of(records)
        assert hold_out(splits, share) == divided


@given(st.lists(st.integers(2, 12), min_size=1, max_size=4), SHARES)
def test_of_groups_of_one_class_the_share_of_each_class_is_drawn(numbers, share):
    # three images of each group
    images = [
        (label, 1 + 100 * label + group)
        for label, number in enumerate(numbers)
        for group in range(number)
        for _ in range(3)
    ]
    records, groups = listed(images)
    chosen = held_out_of(records, share, groups)
    drawn = Counter(label for source, label in records if source in chosen)
    for label, number in enumerate(numbers):
        assert drawn[label] == 3 * min(number - 1, max(1, round(share * number)))


@given(IMAGES, st.integers(1, 8), st.integers(0, 5))
def test_a_sample_is_spread_over_the_groups(images, shots, seed):
    records, groups = listed(images)
    sample, _ = few_shot(records, [], shots, None, seed, groups)
    assert len({*sample}) == len(sample)
    for label in classes_of(records):
        own = [record for record in records if record.label == label]
        drawn = [record for record in sample if record.label == label]
        assert len(drawn) == min(shots, len(own))
        there = Counter(groups.get(source, source) for source, _ in own)
        taken = Counter(groups.get(source, source) for source, _ in drawn)
        most = max(taken.values())
        # a group with fewer than the most has no further image, or lacks one round at most
        assert all(taken[group] >= min(number, most - 1) for group, number in there.items())


@given(IMAGES, SHARES, SHARES, st.integers(2, 8))
def test_init_draws_test_and_validation_images_of_other_groups(images, share, val_share, least):
    found = [
        FoundImage(f"{i}.png", "abcd"[label], "train", group=f"camera {group}" if group else "")
        for i, (label, group) in enumerate(images)
    ]
    tested = set_aside(found, "held_out", share)
    divided = set_aside(tested, "val", val_share, least)
    parts = [
        {image.group or image.path for image in divided if image.split == split}
        for split in ("train", "val", "held_out")
    ]
    assert sum(map(len, parts)) == len(set().union(*parts))
    before = Counter(image.label for image in tested if image.split == "train")
    after = Counter(image.label for image in divided if image.split == "train")
    assert after.keys() == before.keys()
    assert all(after[label] == number for label, number in before.items() if number < least)
