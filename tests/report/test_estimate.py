"""Estimates on made-up features, against plain and slow arithmetic, and the command on a small folder."""

import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import CONFIGS, image_folder, noise, refused
from scipy.stats import beta
from sklearn.linear_model import LogisticRegression

from kdpl.__main__ import main
from kdpl.errors import ConfigError
from kdpl.report.estimate import folds
from kdpl.report.estimate.expected import Limit, Priors, describe, expect, interval
from kdpl.report.estimate.folds import (
    LARGER_PROBE,
    PROBE,
    PUBLISHED,
    STUDENT,
    TARGETS,
    ZERO_SHOT,
    Frozen,
    Measured,
    measure,
)
from kdpl.report.intervals import Accuracy
from kdpl.report.page import fill
from kdpl.targets.refinement.experts import Evidence

PRIORS = Priors((-0.08, 0.12), 30, (0.02, 0.01), (0.05, 0.02), (0.2, 0.5, 0.05), (0.01, 0.03))
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
    return Frozen(evidence, text, student, teacher, 90 - val), truth


def test_each_labelled_image_judges_once_models_that_have_not_seen_its_group(monkeypatch):
    frozen, _ = made_up(labels_a_class=6, group_size=2, val=6)
    evidence, fitted, judged = frozen.evidence, [], []
    groups = evidence.groups

    def spy(features, result, strength):
        if (evidence.truth[result.judges] >= 0).all():
            judged.extend(result.judges.tolist())
        seen = groups[result.labels >= 0].tolist()
        assert not {*seen} & {*groups[result.judges].tolist()}
        return probed(features, result, strength)

    def taught(frozen, targets, images):
        fitted.append({*images.tolist()})
        return as_is(frozen, targets, images)

    probed, as_is = folds._probed, folds.taught
    monkeypatch.setattr(folds, "_probed", spy)
    monkeypatch.setattr(folds, "taught", taught)
    result = measure(frozen)
    expected = [*range(18), *range(84, 90)]  # labelled images, and validation images
    assert sorted(judged) == sorted([*expected, *expected])  # by two probes
    assert sorted(result.images.tolist()) == expected
    assert {*range(84, 90)} in fitted


def test_no_held_out_label_leaks_into_targets_or_student():
    frozen, truth = made_up()
    evidence = frozen.evidence
    results = []
    folds.assign(
        evidence, folds.RefinementConfig(), on_result=lambda result, _: results.append(result)
    )
    fold = next(result for result in results if 0 in result.judges)
    wrong = evidence.labels.index_fill(0, fold.judges, -1)
    assert fold.labels.equal(wrong)
    rows = folds.taught(frozen, fold.assignments, fold.judges)
    spoilt = fold.assignments.index_copy(0, fold.judges, torch.eye(3)[(truth[fold.judges] + 1) % 3])
    assert rows.equal(folds.taught(frozen, spoilt, fold.judges))


def test_the_out_of_fold_accuracy_of_a_probe_is_that_of_a_plain_loop():
    frozen, truth = made_up(labels_a_class=2)
    result = measure(frozen)
    assert result.labels == 1
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
        measured = dict(zip(result.images.tolist(), result.hits[PROBE].tolist(), strict=True))
        assert [measured[i] for i in held_out] == right.tolist()


def test_targets_that_are_worse_than_the_teacher_are_not_expected(monkeypatch):
    frozen, _ = made_up()
    assign = folds.assign

    def refusing(*args, **kwargs):
        return replace(assign(*args, **kwargs), right=(0.9, 0.1))

    monkeypatch.setattr(folds, "assign", refusing)
    hits = measure(frozen).hits
    assert hits[STUDENT].equal(hits[PUBLISHED])
    assert hits[TARGETS].equal(hits[ZERO_SHOT])


@pytest.mark.parametrize(("share", "count"), [(0.7, 10), (0.95, 160)])
def test_an_interval_is_of_a_beta_distribution_and_a_spread_adds_to_its_variance(share, count):
    low, high = interval(share, count)
    assert (low, high) == pytest.approx(beta.interval(0.9, share * count, (1 - share) * count))
    wide = interval(share, count, 0.03)
    numbers = np.arange(count, 0, -0.01)
    variances = beta.var(share * numbers, (1 - share) * numbers)
    fewer = numbers[np.argmax(variances >= variances[0] + 0.03**2)]
    assert wide == pytest.approx(interval(share, fewer), abs=1e-3)


def test_groups_count_once_and_the_confidence_counts_as_images():
    frozen, _ = made_up(labels_a_class=6, group_size=2)
    hits = torch.tensor([1.0, 1, 1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0])
    measured = Measured(torch.arange(18), {STUDENT: hits, ZERO_SHOT: hits}, 2.0, 0.7)
    groups = [(hits[i] + hits[i + 3]) / 2 for g in range(0, 18, 6) for i in range(g, g + 3)]
    error = 1 - float(np.mean(groups))
    priors = PRIORS._replace(offset=(-0.2, 0.3), worth=20, training=(0.05, 0.0))
    rows = expect(frozen.evidence, measured, priors).rows
    assert rows[ZERO_SHOT].value == pytest.approx((0.5 + 9 * (1 - error)) / 10)
    steps = np.log2(3 / 2)  # three groups a class, two were seen
    value = (20 * 0.6 + 9 * (1 - error + steps * 0.02)) / 29 + 0.05
    assert rows[STUDENT].value == pytest.approx(value)
    assert rows[STUDENT].interval == pytest.approx(interval(value, 29, steps * 0.01))
    # few labels say less of the confidence of a teacher that is right by chance
    measured.hits[ZERO_SHOT] = torch.zeros(18)
    by_chance = expect(frozen.evidence, measured, priors).rows[STUDENT].value
    assert by_chance == pytest.approx(value - 20 * 0.1 / 29)


def test_each_doubling_of_the_labels_gains_as_much():
    frozen, _ = made_up(noise=1.5)
    expected = expect(frozen.evidence, measure(frozen), PRIORS)
    value = expected.rows[STUDENT].value
    assert expected.more.value == pytest.approx(0.02)
    half = 1.6448536 * 0.01
    assert expected.more.interval == pytest.approx((0.02 - half, 0.02 + half))
    labels, shares = zip(*expected.curves[STUDENT], strict=True)
    assert labels == (2, 4, 8)
    assert shares == pytest.approx((value - 0.02, value, value + 0.02))


def test_the_gain_over_the_probe_is_weighted_by_precision():
    frozen, _ = made_up(labels_a_class=4)
    hits = [(torch.arange(12) % n > 0).float() for n in (4, 2)]
    measured = Measured(torch.arange(12), dict(zip((STUDENT, PROBE), hits, strict=True)), 4.0, 0.7)
    expected = expect(frozen.evidence, measured, PRIORS)
    measured_gain = expected.rows[STUDENT].value - expected.rows[PROBE].value
    variances = np.var((hits[0] - hits[1]).numpy(), ddof=1) / 12 + 0.03**2, 0.05**2
    values = measured_gain, 0.2 * 4**-0.5 + 0.01
    value, sum_of_weights = np.average(values, weights=1 / np.array(variances), returned=True)
    assert expected.over_probe.value == pytest.approx(value)
    half = 1.6448536 * sum_of_weights**-0.5
    assert expected.over_probe.interval == pytest.approx((value - half, value + half))


def test_a_single_image_that_judges_shows_no_variance_and_the_gain_is_that_of_other_domains():
    frozen, _ = made_up(labels_a_class=1, val=1)
    judged = torch.arange(89, 90)
    measured = Measured(judged, {STUDENT: torch.ones(1), PROBE: torch.ones(1)}, 1.0, 0.7)
    expected = expect(frozen.evidence, measured, PRIORS)
    low, high = expected.over_probe.interval
    assert expected.over_probe.value == pytest.approx(0.2 + 0.01, abs=0.01)
    assert high - low == pytest.approx(2 * 1.645 * 0.05, rel=0.01)


def test_with_one_label_a_class_the_student_is_a_guess_and_without_labels_nothing_is_expected():
    frozen, _ = made_up(labels_a_class=1)
    said = describe(frozen, measure(frozen), NAMES)
    assert not said["judged"]
    assert said["expected"].over_probe is None
    assert not said["expected"].rows.keys() & {PROBE, LARGER_PROBE, TARGETS}
    assert np.ptp(said["expected"].rows[STUDENT].interval) > 0.1
    frozen, _ = made_up(labels_a_class=0)
    assert describe(frozen, measure(frozen), NAMES)["expected"] is None


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


def test_without_labels_a_class_that_the_teacher_finds_too_often_is_listed():
    frozen, _ = made_up(labels_a_class=0)
    frozen.still[:, 2] = 0.0
    said = describe(frozen, measure(frozen), NAMES)
    others = [name for name in NAMES if name != "eel"]
    assert [limit.about for limit in said["limits"]] == [others, ["eel"]]
    for kind in ("txt", "html"):
        text = printed(kind, **said)
        share = "than twice a class's share of the images for eel"
        assert share in text.replace("&#39;", "'")


@pytest.mark.parametrize("searches", [True, False])
def test_a_search_is_advised_only_if_the_run_does_not_search(searches):
    frozen, _ = made_up()
    said = describe(frozen, measure(frozen), NAMES)
    said["limits"] = [Limit("network", gain=Accuracy(0.1, (0.0, 0.2)))]
    for kind in ("txt", "html"):
        text = printed(kind, **said | {"searches": searches})
        assert "take a larger --student" in text
        assert ("train its whole tower (search)" in text) != searches


@pytest.mark.parametrize("labels", [4, 1])
def test_the_students_curve_has_the_students_colour(labels):
    frozen, _ = made_up(labels_a_class=labels)
    page = printed("html", **describe(frozen, measure(frozen), NAMES))
    assert '<span class="student">● student</span>' in page
    # one curve, or the second of two, which the style sheet gives the student's colour
    groups = re.findall(r'<g class="(\w+)">', page)
    assert groups == (["student"] if labels == 1 else ["l0", "l1"])
    assert ".l1 { color: var(--student); }" in page


def test_validation_images_judge_one_label_a_class():
    frozen, _ = made_up(labels_a_class=1, val=12)
    result = measure(frozen)
    assert result.labels == 1
    assert result.images.tolist() == [*range(78, 90)]
    expected = describe(frozen, result, NAMES)["expected"]
    assert expected.over_probe is not None
    # five labels a class, four of them for validation
    assert [labels for labels, _ in expected.curves[STUDENT]] == [2.5, 5, 10]


def test_limits_are_sorted_by_gain_and_weak_classes_are_below_the_mean():
    frozen, _ = made_up(labels_a_class=8, noise=1.5)
    result = measure(frozen)
    said = describe(frozen, result, NAMES)
    gains = [limit.gain.value for limit in said["limits"] if limit.gain]
    assert gains == sorted(gains, reverse=True)
    assert all(right / total < result.hits[STUDENT].mean() for _, right, total in said["weak"])
    # names that say something, and names that say nothing
    assert not said["expected"].by_chance
    silent = replace(frozen, still=torch.zeros_like(frozen.still))
    said = describe(silent, measure(silent), NAMES)
    assert said["expected"].by_chance
    assert said["limits"][0].key == "teacher"


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
    assert all("training? not known" in text for text in (printed, page)), "a teacher by chance"
    for name in (STUDENT, ZERO_SHOT, PROBE, LARGER_PROBE):
        assert name in printed
        assert name.replace("'", "&#39;") in page
    assert page.count("<svg") == 1
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("features/*/*.npy")}
    assert kept
    assert main(options) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert capsys.readouterr().out == printed
    # files that are only touched are the same images
    for path in images.rglob("*.png"):
        os.utime(path, (0, 2e9))
    assert main(options) == 0
    assert {*tmp_path.glob("features/*/*.npy")} == {*kept}
    assert capsys.readouterr().out == printed
    # other images under the same names
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        noise(16, 16, seed=number).save(path)
    assert main(options) == 0
    made = {*tmp_path.glob("features/*/*.npy")} - {*kept}
    assert {path.name for path in made} == {path.name for path in kept}
    assert not {path.read_bytes() for path in made} & {path.read_bytes() for path in kept}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_table_and_a_folder_of_one_name_have_folders_of_their_own(images, tmp_path, monkeypatch):
    made = []

    def prepare(path, folder, *_):
        made.append(str(folder))
        raise ConfigError("that is all: stop here")

    monkeypatch.setattr("kdpl.cli.prepare.survey_and_choose", prepare)
    for path in ("x", "x.csv", "my.photos"):
        assert main(["estimate", path]) == 1
    assert made == ["runs/x_estimate", "runs/x.csv_estimate", "runs/my.photos_estimate"]


def test_shots_are_taken_and_the_command_to_run_it_goes_to_the_folder_of_relative_paths(
    images, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(CONFIGS / "student" / "quickstart.yaml", "mine.yaml")
    assert main(["estimate", str(images), "--shots=2", "--student=mine.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "measured on 6 labelled images" in printed
    assert re.search(r"labels a class: 1: .*, 2: .*, 4: ", printed)
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
