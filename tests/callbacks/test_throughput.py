from types import SimpleNamespace

import pytest
import torch

from kdpl.callbacks.throughput import Throughput


class Recorder:
    def __init__(self):
        self.logged = []

    def log_dict(self, values, **options):
        assert options["prog_bar"]
        self.logged.append(values)

    def __getitem__(self, name):
        return [values[f"train/{name}"] for values in self.logged]


def train(batches, times, monkeypatch, processes=1, epochs=1):
    """Train on batches whose starts and ends are at these times."""
    clock = iter(times)
    monkeypatch.setattr("kdpl.callbacks.throughput.time.perf_counter", lambda: next(clock))
    callback, module, trainer = Throughput(), Recorder(), SimpleNamespace(world_size=processes)
    for _ in range(epochs):
        for step, images in enumerate(batches):
            batch = (torch.zeros(images, 3, 2, 2), torch.zeros(images))
            callback.on_train_batch_start(trainer, module, batch, step)
            callback.on_train_batch_end(trainer, module, None, batch, step)
    assert next(clock, None) is None
    return module


@pytest.mark.parametrize(("processes", "expected"), [(1, [8.0, 8.0, 6.0]), (4, [32.0, 32.0, 24.0])])
def test_the_rate_is_images_over_seconds_since_the_warm_up_on_all_processes(processes, expected, monkeypatch):
    # the first batch's end, the second's, and from there on start and end
    module = train([8, 8, 8, 8], [100.0, 101.0, 101.0, 102.0, 102.0, 104.0], monkeypatch, processes)
    assert module["images_per_s"] == expected


def test_the_wait_is_the_share_of_the_time_between_the_end_of_a_step_and_the_next_batch(monkeypatch):
    module = train([8, 8, 8, 8], [0.0, 1.0, 1.5, 2.0, 4.0, 5.0], monkeypatch)
    assert module["data_wait"] == [0.0, 0.25, 0.5]


def test_each_epoch_is_counted_by_itself(monkeypatch):
    times = [0.0, 1.0, 1.5, 2.0, 1000.0, 1002.0, 1002.5, 1004.0]
    module = train([6, 6, 6], times, monkeypatch, epochs=2)
    assert module["images_per_s"] == [6.0, 6.0, 3.0, 3.0]
    assert module["data_wait"] == [0.0, 0.25, 0.0, 0.125]
