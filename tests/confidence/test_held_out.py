import json
import math
import re
from contextlib import suppress
from functools import cache
from itertools import product
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
from kdpl.tasks import MULTI_CLASS, DecisionRule


def classifier_with(held_out):
    return SimpleNamespace(companions={"held_out": held_out}, task=MULTI_CLASS, folder=None)


def scores_of(scores, correct, label_scores=None):
    scores, correct = torch.tensor(scores, dtype=torch.float32), torch.tensor(correct)
    if label_scores is None:
        label_scores = torch.where(correct, scores, 0)
    return HeldOutScores(1.0, scores, torch.as_tensor(label_scores).float(), correct)


def plain_threshold(scores, correct, max_error):
    """By a loop from half of the images, or the fewest that can show the error; None: there is none.

    The bound of the error is the upper one by Clopper and Pearson.
    """

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
            least = sorted(scores, reverse=True)[count - 1]
            accepted = [c for s, c in zip(scores, correct, strict=True) if s >= least]
            if bound(accepted.count(False), len(accepted)) > max_error:
                break
            found = least
        permitted = more
    return found


@pytest.mark.parametrize(("max_error", "seed"), [(0.02, 0), (0.1, 1), (0.1, 2), (0.3, 2)])
@pytest.mark.parametrize("rounded", [False, True])
def test_the_threshold_is_that_of_a_plain_loop(max_error, rounded, seed):
    draw = np.random.default_rng(seed)
    scores = draw.random(160).astype("float32")
    correct = draw.random(160) < scores ** (0.02 + 0.06 * seed)
    # equal scores, which no threshold can tell apart
    scores = scores.round(1) if rounded else scores
    held_out = scores_of(scores, correct)
    given = scores.tolist(), correct.tolist()
    expected = plain_threshold(*given, max_error)
    if expected is None:
        with world.refused(ConfigError, f"shows an error of {100 * max_error:.3g}%, ") as refusal:
            held_out.threshold(max_error)
        # the message names an error that a threshold achieves, in tenths of a percent
        (percent,) = re.findall(r", but ([\d.]+)%: ", str(refusal.value))
        assert plain_threshold(*given, float(percent) / 100) is not None
    else:
        assert held_out.threshold(max_error) == expected


def draw_logits(draw, count, classes=10):
    """Logits, and labels of which some are wrong even at high scores; T = 1 is not calibrated."""
    logits = draw.standard_normal((count, classes)) * 2
    labels = draw.integers(classes, size=count)
    logits[np.arange(count), labels] += draw.gamma(6.0, 1.3, size=count)
    return torch.from_numpy(logits * 1.6).float(), torch.from_numpy(labels)


@cache
def population():
    return draw_logits(np.random.default_rng(1), 50_000)


@pytest.mark.parametrize(("max_error", "count"), [(0.01, 1000), (0.05, 200)])
def test_a_wanted_error_is_kept_in_95_percent_of_many_splits(max_error, count):
    logits, labels = population()
    top = logits.softmax(dim=1).max(dim=1)
    order = top.values.argsort(descending=True)
    falling, wrong = top.values[order].numpy(), (top.indices != labels)[order].double().numpy()
    errors = wrong.cumsum() / np.arange(1, len(wrong) + 1)
    draw, broken, reached = np.random.default_rng(2), 0, 0
    for _ in range(150):
        chosen = torch.from_numpy(draw.integers(len(labels), size=count))
        held_out = scores_of(top.values[chosen].numpy(), (top.indices == labels)[chosen].numpy())
        try:
            threshold = held_out.threshold(max_error)
        except ConfigError:
            continue
        reached += 1
        last = np.searchsorted(-falling, -np.float32(threshold), side="right") - 1
        broken += errors[last] > max_error
    assert reached > 40
    # 150 splits with 5 % broken each: 15 or more have a probability of 1 %
    assert broken <= 14


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
    made = HeldOutScores.of(*draw_logits(np.random.default_rng(5), 2 * MAX_IMAGES), sampled=True)
    assert len(made) == MAX_IMAGES
    made.save(tmp_path, "ab")
    for given in (made, HeldOutScores.read(tmp_path, "ab")):
        for wanted in ({"max_error": 0.1}, {"sets": 0.9}):
            with world.refused(ConfigError, r"a sample of equally many of each class"):
                decision_rule(classifier_with(given), **wanted)
        rule = decision_rule(classifier_with(given), calibrated=True)
        assert rule.temperature == made.temperature
        assert json.loads(given.metadata(10)["thresholds"]) == {}


def test_sets_hold_the_label_as_often_as_wanted_over_many_splits():
    logits, labels = population()
    label_scores = logits.softmax(dim=1).gather(1, labels[:, None]).squeeze(1).numpy()
    draw, shares = np.random.default_rng(3), []
    for _ in range(300):
        chosen = draw.integers(len(labels), size=300)
        held_out = scores_of(label_scores[chosen], np.ones(300, dtype=bool))
        shares.append((label_scores >= held_out.set_threshold(0.9)).mean())
    # its expectation is between the coverage and 1/301 above it
    spread = 4 * np.std(shares) / math.sqrt(len(shares))
    assert 0.9 - spread <= np.mean(shares) <= 0.9 + 1 / 301 + spread


def test_the_set_threshold_is_the_finite_sample_quantile():
    held_out = scores_of(np.ones(19), np.ones(19, dtype=bool), np.arange(19) / 19)
    # ceil(20 * 0.95) = 19 of 19 labels belong to their sets, and ceil(20 * 0.9) = 18
    assert held_out.set_threshold(0.95) == 0
    assert held_out.set_threshold(0.9) == pytest.approx(1 / 19)
    with world.refused(ConfigError, "49 held-out images or more for sets of 98%, not 19"):
        held_out.set_threshold(0.98)


@pytest.mark.parametrize(("max_error", "least"), [(0.01, 299), (0.02, 149), (0.05, 59)])
def test_without_errors_a_wanted_error_takes_a_number_of_images_that_is_named(max_error, least):
    enough = scores_of(np.linspace(0.5, 1, least), np.ones(least, dtype=bool))
    assert enough.threshold(max_error) == 0.5
    few = scores_of(np.ones(least - 1), np.ones(least - 1, dtype=bool))
    with world.refused(ConfigError, f"{least} held-out images .*not {least - 1}"):
        few.threshold(max_error)


@pytest.mark.parametrize("wrong", [0, 1, -0.1, float("nan")])
def test_shares_outside_of_0_and_1_are_refused(wrong):
    held_out = scores_of(np.ones(400), np.ones(400, dtype=bool))
    for wanted, kept in product(("max_error", "sets"), (held_out, None)):
        with world.refused(ConfigError, f"{wanted} is .*, expected a share") as refusal:
            decision_rule(classifier_with(kept), **{wanted: wrong})
        # to calibrate would not help
        assert not hasattr(refusal.value, "__notes__")


def test_a_classifier_of_several_labels_needs_no_rule():
    task = SimpleNamespace(name="several labels")
    classifier = SimpleNamespace(companions={}, task=task, folder=None)
    assert decision_rule(classifier) == DecisionRule()
    with world.refused(ConfigError, "doubt about predictions"):
        decision_rule(classifier, unknown=True)


def test_an_error_of_all_images_is_not_advised():
    held_out = scores_of(np.ones(400), np.zeros(400, dtype=bool))
    with world.refused(ConfigError, "shows an error of 10%: accept a larger error"):
        held_out.threshold(0.1)


def test_a_temperature_that_no_image_bounds_is_not_used():
    held_out = HeldOutScores.of(torch.eye(3), torch.arange(3))
    with world.refused(ConfigError, "on 3 held-out images no temperature is best"):
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
    # earlier versions also kept which classes were predicted
    path = tmp_path / HeldOutScores.file
    with safe_open(path, "pt") as opened:
        about = opened.metadata()
    assert "sampled" not in str(about)
    save_file(load_file(path) | {"predicted": labels.int()}, path, metadata=about)
    read = HeldOutScores.read(tmp_path, "ab")
    assert read.temperature == held_out.temperature > 1
    for name in ("scores", "label_scores", "correct"):
        assert torch.equal(getattr(read, name), getattr(held_out, name))
    with world.refused(ArtifactError, "held_out.safetensors belongs to another classifier"):
        HeldOutScores.read(tmp_path, "cd")
