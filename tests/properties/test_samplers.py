from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpl.data.loader import EvaluationSampler, TrainSampler
from kdpl.data.sampling import generator

uneven = st.lists(st.integers(1, 30), min_size=1, max_size=5).map(
    lambda sizes: np.repeat(np.arange(len(sizes)), sizes)
)
pools = st.tuples(st.integers(1, 80))
batches = st.integers(1, 9)
processes = st.integers(1, 5)
seeds = st.integers(0, 2**31)
epochs = st.integers(0, 5)


def train_samplers(pool, batch_size, world_size, seed, epoch):
    num_images, *labels = pool
    made = [
        TrainSampler(num_images, batch_size, seed, rank, world_size, *labels)
        for rank in range(world_size)
    ]
    for sampler in made:
        sampler.set_epoch(epoch)
    return made


@given(pools, batches, processes, seeds, epochs)
def test_an_epoch_has_each_image_once(pool, batch_size, world_size, seed, epoch):
    lists = [list(sampler) for sampler in train_samplers(pool, batch_size, world_size, seed, epoch)]
    assert len(set(map(len, lists))) == 1
    seen = [index for index, _ in chain(*lists)]
    assert {at for _, at in chain(*lists)} == {epoch}
    (num_images,), together = pool, batch_size * world_size
    if num_images >= together:
        assert len(seen) == len(set(seen)) == num_images // together * together
        assert set(seen) <= set(range(num_images))
    else:
        # one short batch: all of them, and so many again that each process has as many
        assert set(seen) == set(range(num_images))
        assert len(seen) - num_images < world_size
    # what processes see together is what one sees alone
    (alone,) = train_samplers(pool, together, 1, seed, epoch)
    merged = [pair for step in zip(*lists, strict=True) for pair in step]
    assert merged[: len(alone)] == list(alone)


def in_classes(labels):
    return len(labels), labels


@given(uneven, batches, processes, seeds, epochs)
def test_balanced_classes_come_equally_often(labels, batch_size, world_size, seed, epoch):
    pool, together, size = in_classes(labels), batch_size * world_size, len(labels)
    (alone,) = train_samplers(pool, together, 1, seed, epoch)
    drawn = list(alone)
    assert len(drawn) == len(alone) == (size // together * together or size), "as without"
    assert len(set(drawn)) == len(drawn), "an image that comes again is another view"
    times = np.bincount([index for index, _ in drawn], minlength=size)
    assert np.ptp(np.bincount(labels, times)) <= 1
    for label in range(labels.max() + 1):
        assert np.ptp(times[labels == label]) <= 1
    for index, number in enumerate(times):
        views = sorted(view for i, view in drawn if i == index)
        assert views == [epoch + 2**32 * again for again in range(number)]
    lists = [list(sampler) for sampler in train_samplers(pool, batch_size, world_size, seed, epoch)]
    merged = [pair for step in zip(*lists, strict=True) for pair in step]
    assert merged[: len(drawn)] == drawn


def test_over_epochs_all_images_of_a_large_class_come_and_no_class_comes_more_often():
    labels, seen = np.repeat([0, 1, 2], [1, 40, 2]), np.zeros(43)
    for epoch in range(60):
        (sampler,) = train_samplers(in_classes(labels), 1, 1, 1, epoch)
        seen += np.bincount([index for index, _ in sampler], minlength=43)
    assert seen.min() > 0
    assert np.bincount(labels, seen) / 60 == pytest.approx([43 / 3] * 3, abs=0.2)


@given(pools, seeds, epochs)
def test_the_order_is_a_uniform_permutation(pool, seed, epoch):
    expected = generator(seed, "order", epoch=epoch).permutation(pool[0])
    (sampler,) = train_samplers(pool, 1, 1, seed, epoch)
    assert [index for index, _ in sampler] == list(expected)


@given(pools | uneven.map(in_classes), batches, processes, seeds, epochs, st.data())
def test_a_resumed_epoch_is_the_rest(pool, batch_size, world_size, seed, epoch, data):
    for sampler in train_samplers(pool, batch_size, world_size, seed, epoch):
        whole = list(sampler)
        done = data.draw(st.integers(0, len(whole) // batch_size), "batches")
        sampler.batches_done = lambda done=done: done
        assert list(sampler) == whole[done * batch_size :]


@given(st.integers(0, 80), processes)
def test_each_image_is_evaluated_once(num_images, world_size):
    samplers = [EvaluationSampler(num_images, rank, world_size) for rank in range(world_size)]
    assert all(len(list(sampler)) == len(sampler) for sampler in samplers)
    assert all(list(sampler) == sorted(sampler) for sampler in samplers)
    assert sorted(chain(*samplers)) == list(range(num_images))
