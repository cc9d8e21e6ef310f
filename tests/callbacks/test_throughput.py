from types import SimpleNamespace

import pytest
import torch

from kdpl.callbacks import Throughput


class Recorder:
    def __init__(self):
        self.rates = []

    def log(self, name, value, **options):
        assert name == "train/images_per_s"
        assert options["prog_bar"]
        self.rates.append(value)


@pytest.mark.parametrize(("processes", "expected"), [(1, [8.0, 8.0, 6.0]), (4, [32.0, 32.0, 24.0])])
def test_the_rate_is_images_over_seconds_since_the_warm_up_on_all_processes(processes, expected, monkeypatch):
    clock = iter([100.0, 101.0, 102.0, 104.0])
    monkeypatch.setattr("kdpl.callbacks.throughput.time.perf_counter", lambda: next(clock))
    callback, module = Throughput(), Recorder()
    trainer = SimpleNamespace(world_size=processes)
    for step in range(4):
        callback.on_train_batch_end(trainer, module, None, (torch.zeros(8, 3, 2, 2), torch.zeros(8)), step)
    assert module.rates == expected


def test_each_epoch_counts_anew(monkeypatch):
    clock = iter([0.0, 1.0, 1000.0, 1002.0])
    monkeypatch.setattr("kdpl.callbacks.throughput.time.perf_counter", lambda: next(clock))
    callback, module = Throughput(), Recorder()
    for step in (0, 1, 0, 1):
        callback.on_train_batch_end(SimpleNamespace(world_size=1), module, None, (torch.zeros(6, 1),), step)
    assert module.rates == [6.0, 3.0]
