"""Groups of near-copies: whole in folds, and one image of each where errors are counted."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpl.data.groups import FOLDS, folds, group_numbers, one_of_each

# images in order, each with its class and its group
IMAGES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=60)


def plain_folds(labels, groups):
    """The same group by group, with counts in dictionaries."""
    total, counts, fold_of = Counter(labels), [Counter() for _ in range(FOLDS)], {}
    for group in dict.fromkeys(groups):
        own = [label for label, of in zip(labels, groups, strict=True) if of == group]
        shares = [sum(count[label] / total[label] for label in own) for count in counts]
        fold_of[group] = shares.index(min(shares))
        counts[fold_of[group]].update(own)
    found = [(fold_of[group], label) for label, group in zip(labels, groups, strict=True)]
    return [-1 if counts[fold][label] == total[label] else fold for fold, label in found]


@given(IMAGES)
def test_groups_are_whole_in_folds_and_no_class_is_lost(images):
    labels, groups = np.array(images, np.int64).reshape(-1, 2).T
    found = folds(labels, groups)
    for fold in {*found.tolist()} - {-1}:
        seen, held_out = found != fold, found == fold
        assert {*labels[held_out]} <= {*labels[seen]}
        # of a class, no group is on both sides
        pairs = [{*zip(labels[rows], groups[rows], strict=True)} for rows in (seen, held_out)]
        assert not pairs[0] & pairs[1]
        # and if a group is on both sides, it is for a class that has no other image
        for label in {label for label, group in pairs[0] if group in {*groups[held_out]}}:
            assert (found[labels == label] == -1).all()
    # the shares are float sums in another order there
    if len({*groups}) == len({*zip(labels, groups, strict=True)}):
        assert found.tolist() == plain_folds(labels.tolist(), groups.tolist())


def test_an_image_without_a_group_is_alone():
    assert group_numbers(["b", "a", "c", "d"], {"a": "x", "d": "x"}).tolist() == [0, 1, 2, 1]


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(0, 99))
def test_one_image_of_each_group_is_drawn_by_the_seed(groups, seed):
    sources = [str(i) for i in range(len(groups))]
    of = dict(zip(sources, map(str, groups), strict=True))
    drawn = one_of_each(sources, of, seed).tolist()
    assert sorted(groups[i] for i in drawn) == sorted({*groups})
    assert drawn == sorted(drawn) == one_of_each(sources, of, seed).tolist()
    assert one_of_each(sources, {}, seed).tolist() == [*range(len(groups))]


def test_each_image_of_a_group_is_drawn_as_often_and_how_many_count_is_said(capsys):
    sources, of = ["a", "b", "c", "d"], dict.fromkeys("abc", "burst")
    drawn = Counter(one_of_each(sources, of, seed).tolist()[0] for seed in range(600))
    assert [drawn[i] / 600 for i in range(3)] == pytest.approx([1 / 3] * 3, abs=0.06)
    assert "2 of 4 held-out images count, one of each group" in capsys.readouterr().err
