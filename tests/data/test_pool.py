import numpy as np
import pytest

from kdpl.data.names import Names
from kdpl.data.pool import UnlabeledPool
from kdpl.data.sampling import share_of
from kdpl.errors import DataError

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


def pool_of(images, seed=1, share=1.0):
    return UnlabeledPool(Names.of(f"{number}.png" for number in range(images)), share, seed)


@pytest.mark.parametrize(
    ("images", "unseen"), [(200, 100), (2000, 100), (4000, 200), (150_000, 5000)]
)
def test_a_share_within_limits_is_held_out(images, unseen):
    pool = pool_of(images)
    pool.hold_out([])
    assert len(pool.unseen) == len({*pool.unseen.tolist()}) == unseen
    assert pool.unseen.tolist() == sorted(pool.unseen.tolist())
    assert {*pool.indices.tolist()} == {*range(images)} - {*pool.unseen.tolist()}
    assert np.array_equal(pool.chosen, pool.indices)
    assert [*pool.used] == [pool.images[i] for i in pool.indices.tolist()]
    assert pool.targeted.tolist() == [*range(images)]


def test_it_is_drawn_by_the_seed_from_the_share_that_is_distilled_on():
    pools = [pool_of(1000, seed, 0.5) for seed in (1, 1, 2)]
    for pool in pools:
        pool.hold_out([])
        assert {*pool.unseen.tolist()} < {*share_of(1000, 0.5, pool.seed).tolist()}
    drawn = [pool.unseen.tolist() for pool in pools]
    assert drawn[0] == drawn[1] != drawn[2]
    pools[0].hold_out([])
    assert pools[0].unseen.tolist() == drawn[1]


def test_labelled_images_are_not_held_out_under_any_name(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    sources = [str(tmp_path / f"{number}.png") for number in range(240)]
    pool = UnlabeledPool(Names.of(sources), 1.0, seed=1)
    labeled = [str(tmp_path / "link" / f"{number}.png") for number in range(140)]
    pool.hold_out(labeled)
    assert pool.unseen.tolist() == [*range(140, 240)]


@pytest.mark.parametrize(("images", "labeled"), [(199, 0), (240, 141)])
def test_more_than_half_or_a_labelled_image_is_not_held_out(images, labeled):
    with pytest.raises(DataError, match=f"the pool has {images} images, too few to hold 100"):
        pool_of(images).hold_out(f"{number}.png" for number in range(labeled))


def test_images_that_are_left_out_are_not_held_out_and_a_sample_is_of_all():
    pool, other = pool_of(300), pool_of(300)
    pool.hold_out([])
    unseen = pool.unseen.tolist()
    pool.leave_out({f"{unseen[3]}.png", f"{pool.indices[5]}.png"})
    assert pool.unseen.tolist() == unseen[:3] + unseen[4:]
    assert len(pool.indices) == 199
    assert len(pool.targeted) == 298
    assert [*pool.sample(50)] == [*other.sample(50)]
