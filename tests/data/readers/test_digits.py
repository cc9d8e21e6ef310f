import numpy as np
from sklearn.datasets import load_digits

from kdpl.data.readers import digits


def test_split_is_a_fixed_permutation_in_700_198_and_899():
    order = np.random.RandomState(0).permutation(1797)
    splits = digits.read_digits()
    assert [len(splits.train), len(splits.val), len(splits.test)] == [700, 198, 899]
    everything = splits.train + splits.val + splits.test
    assert [record.source for record in everything] == [f"digits/{i:04d}" for i in order]
    assert [record.label for record in everything] == load_digits().target[order].tolist()
    assert splits.class_names[3] == "three"
    assert splits.unlabeled is None
