import json
import math
from contextlib import suppress
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import world
from doubting import bursts
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.stats import beta

from kdpl.confidence.decision import decision_rule
from kdpl.confidence.held_out import MAX_IMAGES, HeldOutScores
from kdpl.errors import ArtifactError, ConfigError
from kdpl.tasks import MULTI_CLASS


def classifier_with(held_out):
    return SimpleNamespace(companions={"held_out": held_out}, task=MULTI_CLASS)


def scores_of(scores, correct, label_scores=None):
    scores, correct = torch.tensor(scores, dtype=torch.float32), torch.tensor(correct)
    label_scores = (
        torch.where(correct, scores, 0) if label_scores is None else torch.tensor(label_scores)
    )
    return HeldOutScores(1.0, scores, label_scores.float(), correct)


def plain_threshold(scores, correct, max_error):
    """The same by a loop over all numbers of accepted images, with the upper Clopper-Pearson bound."""

    def bound(errors, accepted):
        return 1.0 if errors == accepted else beta.ppf(0.95, errors + 1, accepted - errors)

    found, permitted = None, -1
    for count in range(1, len(scores) + 1):
        more = permitted
        while bound(more + 1, count) <= max_error:
            more += 1
        if count < len(scores) / 2 or more < 0:
            continue
        if found is None or more > permitted or count == len(scores):
            threshold = sorted(scores, reverse=True)[count - 1]
            accepted = [
                right for score, right in zip(scores, correct, strict=True) if score >= threshold
            ]
            if bound(accepted.count(False), len(accepted)) > max_error:
                break
            found = threshold
        permitted = more
    return found


@pytest.mark.parametrize("max_error", [0.02, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_is_that_of_a_plain_loop_and_so_is_the_least_error(max_error, rounded, seed):
    draw = np.random.default_rng(seed)
    scores = draw.random(160).astype("float32")
    correct = draw.random(160) < scores ** (0.02 + 0.06 * seed)
    # equal scores, which no threshold can tell apart
    scores = scores.round(1) if rounded else scores
    held_out, expected = (
        scores_of(scores, correct),
        plain_threshold(scores.tolist(), correct.tolist(), max_error),
    )
    if expected is None:
        with world.refused(
            ConfigError, f"shows an error of {100 * max_error:.3g}%, the least that one shows is "
        ):
            held_out.threshold(max_error)
    else:
        assert held_out.threshold(max_error) == expected
    least = held_out.least_error()
    assert plain_threshold(scores.tolist(), correct.tolist(), least) is not None
    assert plain_threshold(scores.tolist(), correct.tolist(), least - 0.002) is None


def draw_logits(draw, count, classes=10):
    """Logits, and labels of which some are wrong even at high scores; T = 1 is not calibrated."""
    logits = draw.standard_normal((count, classes)) * 2
    labels = draw.integers(classes, size=count)
    logits[np.arange(count), labels] += draw.gamma(6.0, 1.3, size=count)
    return torch.from_numpy(logits * 1.6).float(), torch.from_numpy(labels)


@cache
def population():
    return HeldOutScores.of(*draw_logits(np.random.default_rng(0), MAX_IMAGES * 20)), *draw_logits(
        np.random.default_rng(1), 200_000
    )


@pytest.mark.parametrize(("max_error", "count"), [(0.01, 1000), (0.02, 600), (0.05, 200)])
def test_a_wanted_error_is_kept_in_95_percent_of_many_splits(max_error, count):
    _, logits, labels = population()
    top = logits.softmax(dim=1).max(dim=1)
    order = top.values.argsort(descending=True)
    falling, wrong = top.values[order].numpy(), (top.indices != labels)[order].double().numpy()
    errors = wrong.cumsum() / np.arange(1, len(wrong) + 1)
    draw, broken, reached = np.random.default_rng(2), 0, 0
    for _ in range(400):
        chosen = torch.from_numpy(draw.integers(len(labels), size=count))
        held_out = scores_of(top.values[chosen].numpy(), (top.indices == labels)[chosen].numpy())
        try:
            threshold = held_out.threshold(max_error)
        except ConfigError:
            continue
        reached += 1
        broken += (
            errors[np.searchsorted(-falling, -np.float32(threshold), side="right") - 1] > max_error
        )
    assert reached > 100
    # 400 splits with 5 % broken each: 31 or more have a probability of 1 %
    assert broken <= 30


def test_refusals_count_among_the_draws_of_which_5_percent_may_exceed_an_error():
    # wrong on 6 % at each score: a threshold for 5 % exceeds it whenever there is one
    draw, given = np.random.default_rng(3), 0
    for _ in range(400):
        scores, correct = draw.random(200).astype(np.float32), draw.random(200) > 0.06
        try:
            scores_of(scores, correct).threshold(0.05)
        except ConfigError:
            continue
        given += 1
    assert 0 < given <= 30  # as above


@pytest.mark.parametrize("size", [1, 20])
def test_an_error_that_is_not_kept_is_promised_in_5_percent_of_draws_also_with_groups(size):
    draw, promised = np.random.default_rng(size), 0
    for _ in range(60):
        scores, correct, rows = bursts(draw, size)  # 6 % of errors
        with suppress(ConfigError):
            HeldOutScores(1.0, scores[rows], scores[rows], correct[rows]).threshold(0.05)
            promised += 1
    assert promised <= 3  # by image, of groups of 20, in 12


def test_a_sample_of_each_class_shows_no_error_and_keeps_its_temperature(tmp_path):
    made = HeldOutScores.of(*draw_logits(np.random.default_rng(5), 400), sampled=True)
    made.save(tmp_path, "ab")
    read = HeldOutScores.read(tmp_path, "ab")
    for given in (made, read):
        for wanted in ({"max_error": 0.1}, {"sets": 0.9}):
            with world.refused(ConfigError, r"a sample of so many of each class \(val_shots\)"):
                decision_rule(classifier_with(given), **wanted)
        rule = decision_rule(classifier_with(given), calibrated=True)
        assert rule.temperature == made.temperature
        assert json.loads(given.metadata(10)["thresholds"]) == {}
    plain = replace(made, sampled=False)
    plain.save(tmp_path, "ab")
    with safe_open(tmp_path / HeldOutScores.file, "pt") as opened:
        assert "sampled" not in str(opened.metadata())
    assert HeldOutScores.read(tmp_path, "ab").threshold(0.1) == plain.threshold(0.1)


@pytest.mark.parametrize("coverage", [0.9, 0.95])
def test_sets_hold_the_label_as_often_as_wanted_over_many_splits(coverage):
    _, logits, labels = population()
    label_scores = logits.softmax(dim=1).gather(1, labels[:, None]).squeeze(1).numpy()
    draw, shares = np.random.default_rng(3), []
    for _ in range(400):
        chosen = draw.integers(len(labels), size=300)
        held_out = scores_of(label_scores[chosen], np.ones(300, dtype=bool))
        shares.append((label_scores >= held_out.set_threshold(coverage)).mean())
    # its expectation is between the coverage and 1/301 above it
    spread = 4 * np.std(shares) / math.sqrt(len(shares))
    assert coverage - spread <= np.mean(shares) <= coverage + 1 / 301 + spread


def test_the_set_threshold_is_the_finite_sample_quantile():
    held_out = scores_of(np.ones(19), np.ones(19, dtype=bool), np.arange(19) / 19)
    # ceil(20 * 0.95) = 19 of 19 labels belong to their sets, and ceil(20 * 0.9) = 18
    assert held_out.set_threshold(0.95) == 0
    assert held_out.set_threshold(0.9) == pytest.approx(1 / 19)
    with world.refused(
        ConfigError, "it takes 49 held-out images or more for sets of 98%, not 19: accept less"
    ):
        held_out.set_threshold(0.98)


@pytest.mark.parametrize(("max_error", "least"), [(0.01, 299), (0.02, 149), (0.05, 59)])
def test_without_errors_a_wanted_error_takes_a_number_of_images_that_is_named(max_error, least):
    assert (
        scores_of(np.linspace(0.5, 1, least), np.ones(least, dtype=bool)).threshold(max_error)
        == 0.5
    )
    with world.refused(
        ConfigError,
        f"it takes {least} held-out images or more to show an error of .*not {least - 1}:",
    ):
        scores_of(np.ones(least - 1), np.ones(least - 1, dtype=bool)).threshold(max_error)


@pytest.mark.parametrize("wrong", [0, 1, -0.1, 2, float("nan")])
def test_shares_outside_of_0_and_1_are_refused(wrong):
    held_out = scores_of(np.ones(400), np.ones(400, dtype=bool))
    with world.refused(ConfigError, "max_error is .*, expected a share between 0 and 1"):
        held_out.threshold(wrong)
    with world.refused(ConfigError, "sets is .*, expected a share between 0 and 1"):
        decision_rule(classifier_with(held_out), sets=wrong)


def test_a_temperature_that_no_image_bounds_is_not_used():
    held_out = HeldOutScores.of(torch.eye(3), torch.arange(3))
    with world.refused(
        ConfigError, "on 3 held-out images no temperature is best: calibrate on more images"
    ):
        decision_rule(classifier_with(held_out), calibrated=True)
    assert decision_rule(classifier_with(held_out), sets=0.5).temperature == 1


def test_scores_are_taken_from_logits_and_are_the_same_after_a_round_trip(tmp_path):
    logits, labels = draw_logits(np.random.default_rng(5), 50)
    held_out = HeldOutScores.of(logits, labels)
    for i in range(50):
        p = np.exp(logits[i].double().numpy() - float(logits[i].max()))
        p /= p.sum()
        assert held_out.scores[i].item() == pytest.approx(p.max(), rel=1e-5)
        assert held_out.label_scores[i].item() == pytest.approx(p[labels[i]], rel=1e-4)
        assert held_out.correct[i].item() == (p.argmax() == labels[i].item())
    held_out.save(tmp_path, "ab")
    read = HeldOutScores.read(tmp_path, "ab")
    assert read.temperature == held_out.temperature > 1
    assert all(
        torch.equal(getattr(read, k), getattr(held_out, k))
        for k in ("scores", "label_scores", "correct")
    )
    with world.refused(
        ArtifactError,
        f"{tmp_path}/held_out.safetensors is of another classifier .*: remove it, or run",
    ):
        HeldOutScores.read(tmp_path, "cd")


def test_of_very_many_images_some_thousand_are_kept():
    assert len(population()[0]) == MAX_IMAGES


def test_a_file_that_says_which_classes_were_predicted_is_read(tmp_path):
    scores = HeldOutScores.of(torch.randn(9, 4), torch.arange(9) % 4)
    scores.save(tmp_path, "ab")
    path = tmp_path / HeldOutScores.file
    with safe_open(path, "pt") as opened:
        about = opened.metadata()
    tensors = load_file(path) | {"predicted": torch.zeros(9, dtype=torch.int32)}
    save_file(tensors, path, metadata=about)
    assert HeldOutScores.read(tmp_path, "ab").scores.equal(scores.scores)
