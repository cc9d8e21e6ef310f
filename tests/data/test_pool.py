import numpy as np

from kdpl.data.names import Names
from kdpl.data.pool import UnlabeledPool
from kdpl.data.sampling import share_of
from kdpl.data.splits import Record, Splits

IMAGES = [f"{number}.png" for number in range(40)]


def test_without_a_share_all_images_are_distilled_on_but_those_that_are_left_out():
    pool = UnlabeledPool(Names.of(IMAGES), 1.0, seed=1)
    every = pool.selection
    assert every.chosen is None
    assert [*every.used] == [*pool.images] == IMAGES
    assert every.indices.tolist() == list(range(40))
    fewer = every.leaving_out({"3.png", "39.png", "no such.png"})
    assert fewer.indices.tolist() == [i for i in range(40) if i not in (3, 39)]
    assert [*fewer.used] == [IMAGES[i] for i in fewer.indices]
    assert np.array_equal(fewer.chosen, fewer.indices)
    assert fewer.left_out == {"3.png", "39.png", "no such.png"}
    assert every.indices.tolist() == list(range(40))


def test_a_share_and_a_sample_of_it_are_drawn_by_the_seed_and_images_are_left_out_of_it():
    pool = UnlabeledPool(Names.of(IMAGES), 0.25, seed=3)
    share = share_of(40, 0.25, 3).tolist()
    assert pool.selection.indices.tolist() == share
    assert len(share) == 10
    fewer = pool.selection.leaving_out({IMAGES[share[4]]})
    assert fewer.indices.tolist() == share[:4] + share[5:]
    assert len(fewer.images) == 40
    # a sample is in the order of the list
    drawn, whole = [*pool.sample(6)], [*pool.selection.used]
    assert [*pool.sample(6)] == drawn == [source for source in whole if source in drawn]
    assert drawn != [*UnlabeledPool(Names.of(IMAGES), 0.25, seed=4).sample(6)]
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
