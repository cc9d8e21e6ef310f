import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpl.data.loader import TrainSampler
from kdpl.data.sampling import generator
from kdpl.data.shards.pieces import WINDOW, by_pieces


def in_pieces(sizes):
    """The number of images in pieces of these sizes, and the first image of each piece."""
    return sum(sizes), np.cumsum([0, *sizes[:-1]])


def random_pieces(seed):
    """More pieces than are mixed, of one to four images each."""
    rng = np.random.default_rng(seed)
    return in_pieces(rng.integers(1, 5, rng.integers(WINDOW + 1, 2 * WINDOW + 1)).tolist())


def sorted_by_times(num_images, pieces, rng):
    """Plainly: each image's time is its piece's turn and up to 64 more."""
    times = []
    for turn, piece in enumerate(rng.permutation(len(pieces))):
        stop = pieces[piece + 1] if piece + 1 < len(pieces) else num_images
        times += [(turn + 64 * rng.random(), image) for image in range(pieces[piece], stop)]
    return [image for _, image in sorted(times)]


many_pieces = st.integers(0, 2**31).map(random_pieces)


def order_of(pool, seed, epoch):
    num_images, pieces = pool
    sampler = TrainSampler(num_images, 1, seed, 0, 1, by_pieces(pieces, num_images))
    sampler.set_epoch(epoch)
    return [index for index, _ in sampler]


@settings(deadline=None, max_examples=30)
@given(many_pieces, st.integers(0, 2**31), st.integers(0, 5))
def test_the_order_is_that_of_plain_sorting_by_the_times_that_images_wait(pool, seed, epoch):
    rng = generator(seed, "order", epoch=epoch)
    assert order_of(pool, seed, epoch) == sorted_by_times(*pool, rng)


def test_a_pool_of_no_more_pieces_than_are_mixed_has_the_uniform_order_of_files():
    num_images, pieces = in_pieces([3] * WINDOW)
    assert by_pieces(pieces, num_images) is None
    assert by_pieces(*in_pieces([3] * (WINDOW + 1))[::-1]) is not None


def test_few_pieces_are_in_use_at_a_time_and_a_run_of_images_is_from_many():
    pool = in_pieces([100] * 1000)
    order = np.array(order_of(pool, 1, 0))
    piece_of = order // 100
    first, last = (np.full(1000, -1) for _ in range(2))
    last[piece_of] = np.arange(100_000)
    first[piece_of[::-1]] = np.arange(100_000)[::-1]
    in_use = [np.count_nonzero((first <= at) & (at <= last)) for at in range(0, 100_000, 50)]
    assert max(in_use) <= WINDOW + 1
    # 64 draws from 64 pieces find 40.6 of them
    runs = [len(set(run)) for run in piece_of[10_000:90_000].reshape(-1, WINDOW)]
    assert 39 < np.mean(runs) < 42
    # a uniform shuffle within a piece: half of the neighbours in the list have changed places
    swapped = np.argsort(order).reshape(1000, 100)
    assert 0.49 < np.mean(swapped[:, 1:] < swapped[:, :-1]) < 0.51
