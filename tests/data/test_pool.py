import numpy as np

from kdpl.data.names import Names
from kdpl.data.pool import UnlabeledPool
from kdpl.data.sampling import share_of
from kdpl.data.splits import Record, Splits

IMAGES = [f"{number}.png" for number in range(40)]


def test_without_a_share_all_images_are_distilled_on_but_those_that_are_left_out():
    pool = UnlabeledPool(Names.of(IMAGES), 1.0, seed=1)
    assert pool.chosen is None
    assert [*pool.used] == [*pool.images] == IMAGES
    assert pool.indices.tolist() == list(range(40))
    pool.leave_out({"3.png", "39.png", "no such.png"})
    assert pool.indices.tolist() == [i for i in range(40) if i not in (3, 39)]
    assert [*pool.used] == [IMAGES[i] for i in pool.indices]
    assert np.array_equal(pool.chosen, pool.indices)
    assert pool.left_out == {"3.png", "39.png", "no such.png"}


def test_a_share_is_drawn_by_the_seed_and_images_are_left_out_of_it():
    pool = UnlabeledPool(Names.of(IMAGES), 0.25, seed=3)
    share = share_of(40, 0.25, 3).tolist()
    assert pool.indices.tolist() == share
    assert len(share) == 10
    pool.leave_out({IMAGES[share[4]]})
    assert pool.indices.tolist() == share[:4] + share[5:]
    assert len(pool.images) == 40


def test_a_sample_is_of_the_share_with_those_that_are_left_out():
    pool = UnlabeledPool(Names.of(IMAGES), 0.25, seed=3)
    before, whole = [*pool.sample(6)], [*pool.used]
    pool.leave_out(set(before[:3]))
    assert [*pool.sample(6)] == before
    assert [*pool.sample(10)] == [*pool.sample(99)] == whole
    assert len({*before}) == 6


def test_images_that_are_left_out_are_not_held_out_and_a_sample_is_of_all():
    images = Names.of(f"{number}.png" for number in range(300))
    pool, other = (UnlabeledPool(images, 1.0, seed=1) for _ in range(2))
    pool.unseen = np.arange(0, 300, 3)
    unseen = pool.unseen.tolist()
    assert {*pool.indices.tolist()} == {*range(300)} - {*unseen}
    assert np.array_equal(pool.chosen, pool.indices)
    assert [*pool.used] == [pool.images[i] for i in pool.indices.tolist()]
    assert pool.targeted.tolist() == [*range(300)]
    pool.leave_out({f"{unseen[3]}.png", f"{pool.indices[5]}.png"})
    assert pool.unseen.tolist() == unseen[:3] + unseen[4:]
    assert len(pool.indices) == 199
    assert len(pool.targeted) == 298
    assert [*pool.sample(50)] == [*other.sample(50)]


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
