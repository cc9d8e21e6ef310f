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
    numbers, given, found = np.random.default_rng(0), [False] * 9 + [True] * 7, []

    def mean(one, other):
        return statistics.mean(math.dist(x, y) for x in one for y in other)

    for number in range(41):
        is_new = numbers.permutation(given) if number else given
        x, y = (
            [row for row, there in zip(everything, is_new, strict=True) if there == each]
            for each in (True, False)
        )
        found.append(2 * mean(x, y) - mean(x, x) - mean(y, y))
    assert watch.energy(pool, new) == pytest.approx(np.mean(np.array(found) >= found[0] - 1e-9))


def test_batches_to_watch_have_what_their_names_say():
    unseen, others = sample_of(200, seed=1), sample_of(60, seed=2)
    world = watch.World(None, unseen, unseen, np.arange(200) % 10, {"noise": others}, others)
    found = {name: draw(40, np.random.default_rng(0)) for name, draw in watch.cases(world).items()}
    assert {len(each) for each in found.values()} == {40}
    for name, each in found.items():
        known = {tuple(row) for row in unseen.features.tolist()}
        strange = sum(tuple(row) not in known for row in each.features.tolist())
        assert strange == 40 * (
            int(name.partition("%")[0]) / 100 if "%" in name else name == "noise"
        )
        assert len({tuple(row) for row in each.features.tolist()}) == 40
    assert not (found["a class missing"].labels == watch.CLASS).any()
    everything = watch.cases(world)["a class doubled"](500, np.random.default_rng(0))
    assert (everything.labels == watch.CLASS).sum() / len(everything) == pytest.approx(
        0.2, abs=0.02
    )
    pool, new = watch.apart(unseen, 50, np.random.default_rng(0))
    assert {tuple(row) for row in pool.features.tolist()}.isdisjoint(
        tuple(row) for row in new.features.tolist()
    )
    assert (len(pool), len(new)) == (150, 50)


@pytest.mark.slow
def test_a_classifier_of_the_digits_is_watched(classifier, capsys, monkeypatch):
    monkeypatch.setattr("kdpl.confidence.drift.two_samples.PERMUTATIONS", 0)  # the command sets it
    watch.main([str(classifier), "--batches=3", "--false=3", "--permutations=399", "--sizes", "60"])
    rows = {
        line.split("|")[1]: line.split("|")[2] for line in capsys.readouterr().out.splitlines()[3:]
    }
    assert len(rows) == 11
    assert rows["unseen against unseen images"].startswith("0 (")
    assert rows["inverted"].startswith("100 (")
