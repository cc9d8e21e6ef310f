import pytest

from kdpl.data.sampler import TrainSampler


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


def test_order_is_a_shuffle_drawn_from_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = TrainSampler(40, 8, seed)
        sampler.set_epoch(epoch)
        return [index for index, _ in sampler]

    assert sorted(order(1, 0)) == list(range(40))
    assert order(1, 3) == order(1, 3)
    orders = [order(seed, epoch) for seed in (1, 2) for epoch in range(3)] + [list(range(40))]
    assert len({tuple(o) for o in orders}) == len(orders)


def test_epoch_travels_with_the_index():
    sampler = TrainSampler(5, 2, 1)
    assert {epoch for _, epoch in sampler} == {0}
    sampler.set_epoch(4)
    assert {epoch for _, epoch in sampler} == {4}
