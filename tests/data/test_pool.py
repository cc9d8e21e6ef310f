from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from kdpl.data.names import Names
from kdpl.data.pool import UnlabeledPool
from kdpl.data.sampling import share_of
from kdpl.data.splits import Record, Splits

IMAGES = [f"{number}.png" for number in range(40)]


def test_without_a_share_all_images_are_distilled_on_but_those_that_are_left_out():
    pool = UnlabeledPool.share(Names.of(IMAGES), 1.0, seed=1)
    assert [*pool.train_images] == [*pool.images] == IMAGES
    assert pool.train.tolist() == pool.targeted.tolist() == list(range(40))
    fewer = pool.leaving_out({"3.png", "39.png", "no such.png"})
    assert fewer.train.tolist() == [i for i in range(40) if i not in (3, 39)]
    assert [*fewer.train_images] == [IMAGES[i] for i in fewer.train]
    assert fewer.left_out == {"3.png", "39.png", "no such.png"}
    assert pool.train.tolist() == list(range(40))


def test_images_held_out_have_a_target_and_may_be_left_out():
    pool = UnlabeledPool.share(Names.of(IMAGES), 1.0, seed=1).holding_out(np.array([7, 2]))
    assert pool.held_out.tolist() == [2, 7]
    assert pool.train.tolist() == [i for i in range(40) if i not in (2, 7)]
    assert pool.targeted.tolist() == list(range(40))
    fewer = pool.leaving_out({"2.png", "3.png"})
    assert fewer.held_out.tolist() == [7]
    assert fewer.targeted.tolist() == [i for i in range(40) if i not in (2, 3)]
    with pytest.raises(FrozenInstanceError):
        fewer.train = pool.train


def test_a_share_and_a_sample_of_it_are_drawn_by_the_seed_and_images_are_left_out_of_it():
    pool = UnlabeledPool.share(Names.of(IMAGES), 0.25, seed=3)
    share = share_of(40, 0.25, 3).tolist()
    assert pool.train.tolist() == share
    assert len(share) == 10
    fewer = pool.leaving_out({IMAGES[share[4]]})
    assert fewer.train.tolist() == share[:4] + share[5:]
    assert len(fewer.images) == 40
    # a sample is in the order of the list
    drawn, whole = [*pool.sample(6)], [*pool.train]
    assert [*pool.sample(6)] == drawn == [index for index in whole if index in drawn]
    assert drawn != [*UnlabeledPool.share(Names.of(IMAGES), 0.25, seed=4).sample(6)]
    assert [*pool.sample(10)] == [*pool.sample(99)] == whole
    assert len({*drawn}) == 6


def test_training_images_are_distilled_on_beside_the_unlabelled_ones_each_once(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "b")
    a, b, c, d, link = (str(tmp_path / name) for name in ("a", "b", "c", "d", "link"))
    train = (Record(a, 0), Record(b, 1), Record(c, 1))

    def pool(unlabeled):
        return [*Splits("some images", ("x", "y"), train, (), (), unlabeled, open).pool]

    assert pool(None) == [a, b, c]
    assert pool([]) == [a, b, c]
    assert pool([d]) == [d, a, b, c]
    assert [*Splits("some images", ("x", "y"), (), (), (), [d, a], open).pool] == [d, a]
    # under the names that the labels have
    assert pool([link, d, a]) == [d, a, b, c]
