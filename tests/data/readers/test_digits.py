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


def test_image_is_the_enlarged_scan_in_a_black_frame():
    image = np.asarray(digits.open_digit("digits/0123"))
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
    assert (image[..., 0] == image[..., 2]).all()
    frame = np.ones((32, 32), dtype=bool)
    frame[4:28, 4:28] = False
    assert (image[frame] == 0).all()
    # averaging 3 x 3 pixels undoes the enlargement, up to bicubic overshoot
    small = image[4:28, 4:28, 0].reshape(8, 3, 8, 3).mean((1, 3)) * 16 / 255
    assert np.corrcoef(small.ravel(), load_digits().images[123].ravel())[0, 1] > 0.98
