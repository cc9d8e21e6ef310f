"""Estimates on made-up features, against plain and slow arithmetic, and the command on a small folder."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import CONFIGS, image_folder, refused
from scipy import stats
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from kdpl.__main__ import main
from kdpl.data.probe import linear_student
from kdpl.report.estimate import folds
from kdpl.report.estimate.expected import LEVEL, describe, expect, paired, unlike
from kdpl.report.estimate.folds import (
    LARGER_PROBE,
    PROBE,
    STUDENT,
    TARGETS,
    ZERO_SHOT,
    Frozen,
    Measured,
    measure,
)
from kdpl.report.intervals import wilson
from kdpl.report.page import fill
from kdpl.targets.refinement.experts import Evidence
from kdpl.targets.refinement.refine import RefinementConfig

NAMES = ("cat", "dog", "eel")


@pytest.fixture(autouse=True)
def _one_strength(monkeypatch):
    """A choice among five strengths of a probe is most of the time, and not what is tested here."""
    monkeypatch.setattr("kdpl.targets.refinement.experts.STRENGTHS", (10.0,))


def printed(kind, **values):
    values = {"name": "images", "command": "run", "searches": False} | values
    return fill(f"estimate.{kind}.jinja", **values)


def made_up(labels_a_class=4, group_size=1, val=0, noise=0.8):
    """Frozen features of 90 images around three means, the first of each class labelled; and all true classes."""
    generator = torch.Generator().manual_seed(5)
    truth = torch.arange(90) % 3

    def features(width):
        means = torch.randn(3, width, generator=generator)
        rows = means[truth] + noise * torch.randn(90, width, generator=generator)
        return torch.nn.functional.normalize(rows, dim=1)

    teacher, student = features(6), features(5)
    logits = 2 * torch.randn(90, 3, generator=generator) + 2 * torch.eye(3)[truth]
    text = logits.log_softmax(dim=1)
    number = torch.arange(90)
    labels = torch.where(number < 3 * labels_a_class, truth, -1)
    validation = torch.where(number >= 90 - val, truth, -1)
    groups = number // 3 // group_size * 3 + number % 3  # consecutive images of a class
    evidence = Evidence(teacher, teacher, text, labels, validation, groups, trusted=True)
    refinement = RefinementConfig(rounds=2)
    return Frozen(evidence, text, student, teacher, 90 - val, True, refinement), truth


def test_each_labelled_image_judges_once_models_that_have_not_seen_its_group(monkeypatch):
    frozen, _ = made_up(labels_a_class=6, group_size=2, val=6)
    splits, distilled = [], []
    groups = frozen.evidence.groups

    def spy(split, **arguments):
        splits.append(split)
        assert not {*groups[split.seen].tolist()} & {*groups[split.judges].tolist()}
        return models_of(split, **arguments)

    def fit(features, targets):
        distilled.append(len(features))
        return as_is(features, targets)

    models_of, as_is = folds.models_of, folds.linear_student
    monkeypatch.setattr(folds, "models_of", spy)
    monkeypatch.setattr(folds, "linear_student", fit)
    result = measure(frozen)
    expected = [*range(18), *range(84, 90)]  # labelled images, and validation images
    assert sorted(result.images.tolist()) == expected
    # with all, half and a quarter of the other labels
    assert sorted(torch.cat([split.judges for split in splits]).tolist()) == sorted(3 * expected)
    # no judged image of the pool is distilled on
    for split, images in zip(splits, distilled, strict=False):
        assert images == 84 - (split.judges < 84).sum()


def test_no_held_out_label_leaks_into_any_model():
    frozen, truth = made_up()
    split = folds.Split(torch.arange(6, 12), torch.arange(6))
    predicted = folds.models_of(split, frozen, (10.0, 10.0))
    wrong = torch.where(torch.arange(90) < 6, (truth + 1) % 3, frozen.evidence.labels)
    spoilt = replace(frozen, evidence=replace(frozen.evidence, labels=wrong))
    again = folds.models_of(split, spoilt, (10.0, 10.0))
    assert all(again[name].equal(rows) for name, rows in predicted.items())


def test_half_of_the_labels_are_half_of_the_groups_of_each_class():
    frozen, truth = made_up(labels_a_class=8, group_size=2)
    images = torch.arange(24)
    half = folds.part_of(frozen.evidence, images, 0.5)
    assert torch.bincount(truth[half]).tolist() == [4, 4, 4]
    assert len(frozen.evidence.groups[half].unique()) == 6
    quarter = folds.part_of(frozen.evidence, images, 0.25)
    assert {*quarter.tolist()} < {*half.tolist()}


def test_the_linear_student_is_the_minimum_of_its_loss():
    frozen, _ = made_up()
    features, targets = frozen.student, frozen.evidence.log_probabilities.exp()
    weight, bias = linear_student(features, targets)
    x, p = features.double().numpy(), targets.double().numpy()
    deviation = np.sqrt(x.var(axis=0, ddof=1).sum())
    x = (x - x.mean(axis=0)) / deviation

    def loss(values):
        w, b = values[:15].reshape(5, 3), values[15:]
        logits = x @ w + b
        return 0.05 * (w**2).sum() - (p * (logits - logsumexp(logits, axis=1, keepdims=True))).sum()

    best = minimize(loss, np.zeros(18), tol=1e-9).x
    expected = x @ best[:15].reshape(5, 3) + best[15:]
    actual = (features @ weight + bias).numpy()
    centered = [rows - rows.mean(axis=1, keepdims=True) for rows in (actual, expected)]
    np.testing.assert_allclose(*centered, atol=2e-2)


def test_the_out_of_fold_accuracy_of_a_probe_is_that_of_a_plain_loop():
    frozen, truth = made_up(labels_a_class=2)
    result = measure(frozen)
    assert result.labels == {1.0: 1}
    order = frozen.evidence.features[:6, 0].argsort()
    hits = {}
    for c in range(3):
        first, second = (i for i in order.tolist() if i % 3 == c)
        hits[first], hits[second] = 0, 1  # folds of the two images of a class
    x = frozen.student.double().numpy()
    for fold in (0, 1):
        learned = [i for i in hits if hits[i] == 1 - fold]
        held_out = [i for i in hits if hits[i] == fold]
        mean, deviation = x[learned].mean(axis=0), np.sqrt(x[learned].var(axis=0, ddof=1).sum())
        probe = LogisticRegression(C=10, class_weight="balanced", max_iter=1000, tol=1e-6)
        probe.fit((x[learned] - mean) / deviation, truth[learned].numpy())
        right = probe.predict((x[held_out] - mean) / deviation) == truth[held_out].numpy()
        measured = dict(zip(result.images.tolist(), result.hits[1.0][PROBE].tolist(), strict=True))
        assert [measured[i] for i in held_out] == right.tolist()


def test_targets_that_are_worse_than_the_teacher_are_not_expected(monkeypatch):
    frozen, _ = made_up()
    assign = folds.assign

    def refusing(*args, **kwargs):
        return replace(assign(*args, **kwargs), right=(0.9, 0.1))

    monkeypatch.setattr(folds, "assign", refusing)
    hits = measure(frozen).hits[1.0]
    words = frozen.evidence.log_probabilities.argmax(dim=1)
    images = measure(frozen).images
    assert hits[TARGETS].equal((words[images] == frozen.evidence.truth[images]).float())


@pytest.mark.parametrize(("hits", "count"), [(7, 10), (152, 160)])
def test_an_interval_is_wilsons(hits, count):
    z = stats.norm.ppf(0.95)
    share = hits / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    assert wilson(hits, count, LEVEL) == pytest.approx((centre - half, centre + half), abs=1e-6)


def test_a_paired_difference_counts_two_more_images_that_differ_in_both_directions():
    difference = torch.tensor([1.0, 0, 0, 1, 0, -1, 1, 1, 0, 0])
    found = paired(difference)
    assert found.value == pytest.approx(0.3)
    squares = sum((value - 0.3) ** 2 for value in [*difference.tolist(), 1, -1])
    half = stats.t.ppf(0.95, 9) * (squares / 9 / 10) ** 0.5
    assert found.interval == pytest.approx((0.3 - half, 0.3 + half))
    # a few equal images are not certain
    low, high = paired(torch.zeros(6)).interval
    assert low < -0.2 < 0.2 < high


def test_groups_count_once():
    frozen, _ = made_up(labels_a_class=6, group_size=2)
    hits = torch.tensor([1.0, 1, 1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0])
    of_share = dict.fromkeys((STUDENT, ZERO_SHOT, TARGETS, PROBE, LARGER_PROBE), hits)
    measured = Measured(torch.arange(18), {1.0: of_share}, {1.0: 2.0}, None)
    groups = [(hits[i] + hits[i + 3]) / 2 for g in range(0, 18, 6) for i in range(g, g + 3)]
    expected = expect(frozen.evidence, measured)
    assert expected.groups == 9
    assert expected.rows[STUDENT].value == pytest.approx(float(np.mean(groups)))
    assert expected.over[PROBE].value == 0
    assert expected.more is None


def test_a_student_that_learns_more_lies_between_a_projector_and_its_targets():
    frozen, _ = made_up(labels_a_class=4)
    hits = {name: torch.ones(12) for name in (STUDENT, TARGETS, ZERO_SHOT, PROBE, LARGER_PROBE)}
    hits[STUDENT] = (torch.arange(12) % 2).float()
    measured = Measured(torch.arange(12), {1.0: hits}, {1.0: 3.0}, None)
    row = expect(frozen.evidence, measured, whole=False).rows[STUDENT]
    assert row.value == pytest.approx(0.75)
    assert row.interval == pytest.approx((wilson(6, 12, LEVEL)[0], wilson(12, 12, LEVEL)[1]))


def test_the_curve_has_the_labels_that_models_saw():
    frozen, _ = made_up(labels_a_class=10, noise=1.5)
    result = measure(frozen)
    assert result.labels == {1.0: 8, 0.5: 4, 0.25: 2}
    expected = expect(frozen.evidence, result)
    assert [labels for labels, _ in expected.curves[STUDENT]] == [2, 4, 8]
    shares = [result.hits[share][STUDENT].mean().item() for share in (0.25, 0.5, 1.0)]
    assert [share for _, share in expected.curves[STUDENT]] == pytest.approx(shares)
    assert expected.more.value == pytest.approx(shares[2] - shares[1])


def test_with_one_label_a_class_no_accuracy_is_said_and_without_labels_nothing_is_expected():
    frozen, _ = made_up(labels_a_class=1)
    said = describe(frozen, measure(frozen), NAMES)
    assert not said["judged"]
    assert said["expected"].rows.keys() == {ZERO_SHOT}
    assert all(0 < share <= 1 for share in said["agreement"])
    for kind in ("txt", "html"):
        text = printed(kind, **said)
        assert "cannot be known: label a second image of each class" in text
        assert "worth training" not in text.lower()
    frozen, _ = made_up(labels_a_class=0)
    assert describe(frozen, measure(frozen), NAMES)["expected"] is None


def test_a_pool_of_other_things_is_noticed():
    frozen, _ = made_up(labels_a_class=8)
    assert unlike(frozen) < 0.2
    rows = frozen.evidence.features.clone()
    rows[40:84] = F.normalize(torch.randn(44, 6, generator=torch.Generator().manual_seed(1)) - 3)
    other = replace(frozen, evidence=replace(frozen.evidence, features=rows))
    assert 0.4 < unlike(other) < 0.9
    said = describe(other, measure(other), NAMES)
    for kind in ("txt", "html"):
        assert "unlabelled images are unlike the labelled ones" in printed(kind, **said)


@pytest.mark.parametrize("eels", [True, False])
def test_without_labels_the_names_that_the_teacher_hardly_finds_are_listed(eels):
    frozen, _ = made_up(labels_a_class=0)
    if not eels:
        frozen.still[:, 2] = -torch.inf
    said = describe(frozen, measure(frozen), NAMES)
    assert [limit.about for limit in said["limits"]] == ([] if eels else [["eel"]])
    for kind in ("txt", "html"):
        text = printed(kind, **said)
        assert ("finds hardly any image of eel: say what such images look like" in text) != eels


def test_validation_images_are_labels_like_all_others():
    frozen, _ = made_up(labels_a_class=1, val=12)
    result = measure(frozen)
    assert sorted(result.images.tolist()) == [0, 1, 2, *range(78, 90)]
    assert result.labels[1.0] == 4


def test_limits_are_sorted_by_gain_and_weak_classes_are_below_the_mean():
    frozen, _ = made_up(labels_a_class=8, noise=1.5)
    result = measure(frozen)
    said = describe(frozen, result, NAMES)
    gains = [limit.gain.value for limit in said["limits"] if limit.gain]
    assert gains == sorted(gains, reverse=True)
    assert all(right / total < result.hits[1.0][STUDENT].mean() for _, right, total in said["weak"])


@pytest.fixture
def images(tmp_path):
    """Four images of each of three classes with a label, and four without."""
    return image_folder(tmp_path / "images", NAMES, splits=("train", "unlabeled"))


def test_the_command_estimates_a_folder_and_again_and_keeps_the_features(
    images, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "images").mkdir(parents=True)
    out = tmp_path / "out"
    options = ["estimate", str(images), f"--out={out}"]
    assert main(options) == 0
    printed = capsys.readouterr().out
    # the folder by default is taken
    assert f"run it: python -m kdpl run {images} --out {tmp_path}/runs/images_run\n" in printed
    page = (out / "estimate.html").read_text()
    assert all("training? " in text for text in (printed, page))
    for name in (STUDENT, ZERO_SHOT, PROBE, LARGER_PROBE):
        assert name in printed
        assert name.replace("'", "&#39;") in page
    assert page.count("<svg") == 1
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("features/*/*.npy")}
    assert kept
    assert main(options) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert capsys.readouterr().out == printed


def test_shots_are_taken_and_the_command_to_run_it_goes_to_the_folder_of_relative_paths(
    images, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(CONFIGS / "student" / "quickstart.yaml", "mine.yaml")
    assert main(["estimate", str(images), "--shots=2", "--student=mine.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "measured on 6 labelled images" in printed
    assert re.search(r"labels a class: 1: [\d.]+$", printed, re.MULTILINE)
    words = f"{images} --student {tmp_path}/mine.yaml --data.init_args.shots=2"
    assert f"run it: cd {tmp_path} && python -m kdpl run {words}\n" in printed


def test_other_folders_and_random_networks_are_refused(images, tmp_path, capsys):
    refused(capsys, main(["estimate", str(images), f"--out={tmp_path}"]), "--out", "(images)")
    # a teacher's files would be replaced
    prompts = tmp_path / "run" / "teacher" / "prompts.safetensors"
    prompts.parent.mkdir(parents=True)
    prompts.touch()
    refused(
        capsys, main(["estimate", str(images), f"--out={tmp_path / 'run'}"]), "--out", "teacher"
    )
    assert prompts.exists()
    options = [f"--out={tmp_path / 'out'}", "--student=quickstart_timm"]
    assert main(["estimate", str(images), *options]) == 1
    assert "random weights" in capsys.readouterr().err
