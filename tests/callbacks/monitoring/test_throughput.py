from types import SimpleNamespace

import torch

from kdpl.callbacks.throughput import Throughput
from kdpl.data.batches import LabeledBatch


def rates(batches, times, monkeypatch, processes=1, epochs=1, first=0):
    """Images per second and wait for data, of batches whose starts and ends are at these times."""
    clock = iter(times)
    monkeypatch.setattr("kdpl.callbacks.throughput.time.perf_counter", lambda: next(clock))
    logged = []
    module = SimpleNamespace(log_dict=lambda values, **_: logged.append(values))
    callback, trainer = Throughput(), SimpleNamespace(world_size=processes)
    for _ in range(epochs):
        for step, images in enumerate(batches, start=first):
            batch = LabeledBatch(torch.zeros(images, 3, 2, 2), torch.zeros(images))
            callback.on_train_batch_start(trainer, module, batch, step)
            callback.on_train_batch_end(trainer, module, None, batch, step)
    assert next(clock, None) is None
    return [
        [values[f"train/{name}"] for values in logged] for name in ("images_per_s", "data_wait")
    ]


def test_speed_and_wait_are_counted_from_the_first_steps_end_of_each_epoch_on_all_processes(
    monkeypatch,
):
    # resumed after the sixth step of an epoch: the first batch's end, the second's, and from there on start and end
    times = [100.0, 101.0, 101.5, 102.0]
    speed = [[32.0, 32.0], [0.0, 0.25]]
    assert rates([8, 8, 8], times, monkeypatch, processes=4, first=6) == speed
    times = [0.0, 1.0, 1.5, 2.0, 1000.0, 1002.0, 1002.5, 1004.0]
    assert rates([6, 6, 6], times, monkeypatch, epochs=2) == [
        [6.0, 6.0, 3.0, 3.0],
        [0.0, 0.25, 0.0, 0.125],
    ]
