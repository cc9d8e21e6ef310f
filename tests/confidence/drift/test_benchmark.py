"""What ``benchmarks/watch.py`` measures with."""

import math
import statistics

import numpy as np
import pytest
import torch

from benchmarks import watch
from kdpl.confidence.drift.image_sample import ImageSample


def sample_of(count, seed, shift=0.0):
    features = np.random.default_rng(seed).normal(shift, 1, (count, 3)).astype(np.float16)
    return ImageSample(torch.from_numpy(features), torch.ones(count), torch.arange(count) % 10)


@pytest.mark.parametrize("shift", [0, 1])
def test_the_energy_distance_is_that_of_a_plain_loop(shift, monkeypatch):
    monkeypatch.setattr("kdpl.confidence.drift.two_samples.PERMUTATIONS", 40)
    pool, new = sample_of(9, seed=1), sample_of(7, seed=2, shift=shift)
    everything = [*pool.features.double().tolist(), *new.features.double().tolist()]
    numbers, given, energies = np.random.default_rng(0), [False] * 9 + [True] * 7, []

    def mean(one, other):
        return statistics.mean(math.dist(x, y) for x in one for y in other)

    for number in range(41):
        is_new = numbers.permutation(given) if number else given
        x, y = (
            [row for row, there in zip(everything, is_new, strict=True) if there == side]
            for side in (True, False)
        )
        energies.append(2 * mean(x, y) - mean(x, x) - mean(y, y))
    assert watch.energy(pool, new) == pytest.approx(
        np.mean(np.array(energies) >= energies[0] - 1e-9)
    )


@pytest.mark.slow
def test_a_classifier_of_the_digits_is_watched(classifier, capsys, monkeypatch):
    monkeypatch.setattr("kdpl.confidence.drift.two_samples.PERMUTATIONS", 0)  # the command sets it
    watch.main([str(classifier), "--batches=1", "--false=2", "--permutations=399", "--sizes", "60"])
    rows = {
        line.split("|")[1]: line.split("|")[2] for line in capsys.readouterr().out.splitlines()[3:]
    }
    assert len(rows) == 11
    assert rows["unseen against unseen images"].startswith("0 (")
    assert rows["inverted"].startswith("100 (")
