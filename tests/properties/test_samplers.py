from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from kdpl.data.loader import EvaluationSampler, TrainSampler

images = st.integers(1, 80)
batches = st.integers(1, 9)
processes = st.integers(1, 5)
seeds = st.integers(0, 2**31)
epochs = st.integers(0, 5)


def train_samplers(num_images, batch_size, world_size, seed, epoch):
    made = [TrainSampler(num_images, batch_size, seed, rank, world_size) for rank in range(world_size)]
    for sampler in made:
        sampler.set_epoch(epoch)
    return made


@given(images, batches, processes, seeds, epochs)
def test_an_epoch_has_each_image_once_in_full_batches(num_images, batch_size, world_size, seed, epoch):
    lists = [list(sampler) for sampler in train_samplers(num_images, batch_size, world_size, seed, epoch)]
    assert len({len(each) for each in lists}) == 1
    seen = [index for index, _ in chain(*lists)]
    assert {at for _, at in chain(*lists)} == {epoch}
    together = batch_size * world_size
    if num_images >= together:
        assert len(seen) == len(set(seen)) == num_images // together * together
        assert set(seen) <= set(range(num_images))
    else:
        # one short batch: all of them, and so many again that each process has as many
        assert set(seen) == set(range(num_images))
        assert len(seen) - num_images < world_size


@given(images, batches, processes, seeds, epochs)
def test_what_processes_see_together_is_what_one_sees_alone(num_images, batch_size, world_size, seed, epoch):
    together = batch_size * world_size
    lists = [list(sampler) for sampler in train_samplers(num_images, batch_size, world_size, seed, epoch)]
    (alone,) = train_samplers(num_images, together, 1, seed, epoch)
    merged = [pair for step in zip(*lists, strict=True) for pair in step]
    assert merged[: len(alone)] == list(alone)


def test_the_order_is_a_shuffle_drawn_from_seed_and_epoch():
    orders = [list(*train_samplers(40, 8, 1, seed, epoch)) for seed in (1, 2) for epoch in range(3)]
    assert len({tuple(index for index, _ in order) for order in [*orders, [(i, 0) for i in range(40)]]}) == 7


@given(images, batches, processes, seeds, epochs, st.data())
def test_a_resumed_epoch_is_the_rest_of_an_uninterrupted_one(num_images, batch_size, world_size, seed, epoch, data):
    for sampler in train_samplers(num_images, batch_size, world_size, seed, epoch):
        whole = list(sampler)
        sampler.start = data.draw(st.integers(0, len(whole)), "start")
        assert list(sampler) == whole[sampler.start :]


@given(st.integers(0, 80), processes)
def test_each_image_is_evaluated_once(num_images, world_size):
    samplers = [EvaluationSampler(num_images, rank, world_size) for rank in range(world_size)]
    assert all(len(list(sampler)) == len(sampler) for sampler in samplers)
    assert all(list(sampler) == sorted(sampler) for sampler in samplers)
    assert sorted(chain(*samplers)) == list(range(num_images))
