import itertools
from collections import Counter

import pytest

from kdpl.data.sampler import EvaluationSampler, TrainSampler


def indices(sampler):
    return [index for index, _ in sampler]


def merged(num_images, batch_size, world_size, epoch=0):
    """The global batches: what all processes see in the same step."""
    samplers = [TrainSampler(num_images, batch_size, 1, rank, world_size) for rank in range(world_size)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    assert len({len(sampler) for sampler in samplers}) == 1
    lists = [indices(sampler) for sampler in samplers]
    assert all(len(seen) == len(sampler) for seen, sampler in zip(lists, samplers, strict=True))
    steps = zip(*[_batched(seen, batch_size) for seen in lists], strict=True)
    return [sorted(itertools.chain(*step)) for step in steps]


def _batched(items, size):
    return [items[start : start + size] for start in range(0, len(items), size)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_epoch_covers_all_but_the_short_last_batch_once(world_size):
    seen = list(itertools.chain(*merged(50, 4, world_size)))
    assert len(seen) == len(set(seen)) == 50 // (4 * world_size) * 4 * world_size


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_iteration_may_leave_out_what_a_cut_epoch_has_had(world_size):
    for rank in range(world_size):
        sampler = TrainSampler(50, 4, 1, rank, world_size)
        whole = indices(sampler)
        sampler.start = 8
        assert indices(sampler) == whole[8:]


def test_global_batches_do_not_depend_on_the_number_of_processes():
    alone = merged(50, 12, 1)
    assert merged(50, 6, 2) == alone
    assert merged(50, 4, 3) == alone
    assert merged(50, 4, 3, epoch=1) == merged(50, 12, 1, epoch=1) != alone


@pytest.mark.parametrize(
    ("num_images", "batch_size", "world_size", "expected"),
    [
        (16, 8, 1, 16),
        (17, 8, 1, 16),
        (7, 8, 1, 7),
        (17, 4, 2, 8),
        (7, 4, 2, 4),
        (7, 8, 3, 3),
        (1, 8, 3, 1),
        (8, 4, 2, 4),
    ],
)
def test_images_per_process_and_epoch(num_images, batch_size, world_size, expected):
    assert {len(TrainSampler(num_images, batch_size, 1, rank, world_size)) for rank in range(world_size)} == {expected}
    merged(num_images, batch_size, world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_single_short_batch_is_kept_whole(world_size):
    (batch,) = merged(7, 8, world_size)
    assert set(batch) == set(range(7))
    assert max(Counter(batch).values()) <= 2


def test_order_is_a_shuffle_drawn_from_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = TrainSampler(40, 8, seed)
        sampler.set_epoch(epoch)
        return indices(sampler)

    assert sorted(order(1, 0)) == list(range(40))
    assert order(1, 3) == order(1, 3)
    orders = [order(seed, epoch) for seed in (1, 2) for epoch in range(3)] + [list(range(40))]
    assert len({tuple(o) for o in orders}) == len(orders)


def test_epoch_travels_with_the_index():
    sampler = TrainSampler(5, 2, 1)
    assert {epoch for _, epoch in sampler} == {0}
    sampler.set_epoch(4)
    assert {epoch for _, epoch in sampler} == {4}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_images", [0, 1, 2, 7, 12])
def test_evaluation_sees_each_image_once(num_images, world_size):
    samplers = [EvaluationSampler(num_images, rank, world_size) for rank in range(world_size)]
    assert sorted(itertools.chain(*samplers)) == list(range(num_images))
    for rank, sampler in enumerate(samplers):
        assert list(sampler) == list(range(rank, num_images, world_size))
        assert len(sampler) == len(list(sampler))
