import os
import re
import shutil
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import world
from report_pages import change_vectors, put_together, set_in
from resampling import bootstrap_difference
from runs import image_folder, in_folder, noise
from sklearn.linear_model import LogisticRegression

from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier
from kdpl.clip import ClipConfig, load_image_clip
from kdpl.data.probe import STRENGTHS, choose_strength, held_out_loss
from kdpl.data.readers import digits
from kdpl.data.sampling import few_shot
from kdpl.errors import ArtifactError, DataError
from kdpl.report.accuracy import against_probes
from kdpl.report.compare import compare_runs
from kdpl.report.intervals import wilson
from kdpl.report.probes import _labeled_images, linear_probe
from kdpl.report.run_folder import Run
from kdpl.runtime.predictions import read_predictions, read_results, write_predictions
from kdpl.runtime.run_folder import CLASSIFIER_FOLDER, PROBE_FILE, PROBE_FOLDER

CLIPS = {name: f"tiny-{name}, weights glyphs" for name in ("teacher", "student")}


def blobs(images, seed):
    """Normalised features [N, D] of three overlapping classes, of which the last has most images; and labels [N]."""
    draw = np.random.default_rng(seed)
    labels = np.minimum(np.arange(images) % 5, 2)
    values = np.eye(8)[labels] + 0.5 * draw.normal(size=(images, 8))
    return values / np.linalg.norm(values, axis=1, keepdims=True), labels


def plain_loss(c, x, y, fold_of):
    """Log loss of images by scikit-learn's regressions of the other folds, whose scale is theirs."""
    loss = 0.0
    for fold in range(max(fold_of) + 1):
        out = fold_of == fold
        scale = np.sqrt(x[~out].var(axis=0, ddof=1).sum())
        model = LogisticRegression(C=c, class_weight="balanced", max_iter=10_000, tol=1e-9)
        model.fit(x[~out] / scale, y[~out])
        logs = model.predict_log_proba(x[out] / scale)
        loss -= logs[range(out.sum()), np.searchsorted(model.classes_, y[out])].sum()
    return loss


def chosen(*arrays):
    return choose_strength(*map(torch.from_numpy, map(np.ascontiguousarray, arrays)))


def places_of(labels):
    """Place of each image within its class: images of a class come in turns."""
    return np.array([sum(labels[:i] == y) for i, y in enumerate(labels)])


def test_c_has_the_least_log_loss_in_folds_as_far_as_there_are_labels():
    x, y = blobs(20, 3)
    fold_of = places_of(y) % 5
    losses = [plain_loss(c, x, y, fold_of) for c in STRENGTHS]
    rows, labels, folds = map(torch.from_numpy, (x, y, fold_of))
    for c, expected in zip(STRENGTHS, losses, strict=True):
        assert held_out_loss(rows, labels, folds, c) == pytest.approx(expected, rel=1e-3)
    best = STRENGTHS[int(np.argmin(losses))]
    assert best != STRENGTHS[0]
    said = "chosen by 5-fold cross-validation on the labelled images"
    assert chosen(x, y, np.arange(20)) == (best, said)
    strength, how = chosen(*blobs(3, 4), np.arange(3))
    assert (strength, how.split(",")[0]) == (STRENGTHS[0], "not chosen")


def test_c_is_chosen_by_folds_of_whole_groups():
    one, labels = blobs(20, 4)
    near = np.repeat(one, 4, axis=0) + 1e-3 * np.random.default_rng(0).normal(size=(80, 8))
    y, groups = np.repeat(labels, 4), np.repeat(np.arange(20), 4)

    def best(fold_of):
        return STRENGTHS[int(np.argmin([plain_loss(c, near, y, fold_of) for c in STRENGTHS]))]

    strength, _ = chosen(near, y, groups)
    assert strength == best(np.repeat(places_of(labels), 4) % 5) != best(places_of(y) % 5)


@pytest.fixture(scope="module")
def run(tmp_path_factory, finished):
    folder = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(finished / PROBE_FOLDER, folder / PROBE_FOLDER)
    return put_together(folder, finished / "teacher", finished / "student")


@pytest.fixture
def copy(run, compared, tmp_path):
    """A copy of that run with its probes, for a test to change."""
    folder = shutil.copytree(run, tmp_path / "copy")
    set_in(folder / "student", teacher=str(folder / "teacher"))
    return folder


def test_the_probe_of_the_students_network_is_a_classifier_like_the_students(finished):
    kept = read_predictions(finished / PROBE_FOLDER / "student")[:40]
    splits = Run.find(finished).data.splits
    images = [splits.open_image(image.source) for image in kept]
    folder = finished / PROBE_FOLDER / CLASSIFIER_FOLDER
    classifier = Classifier.load(folder)
    predicted = [best for (best,) in classifier.predict(images)]
    assert [one.class_name for one in predicted] == [image.prediction for image in kept]
    expected = [image.probability for image in kept]
    assert [one.probability for one in predicted] == pytest.approx(expected, abs=1e-4)
    assert "linear probe: logistic regression" in (folder / "README.md").read_text()
    with world.refused(ArtifactError, "another tuned teacher"):
        classifier.add_classes(ClassVectors.of_teacher(finished / "teacher"))


def replace_in(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def compare(*args, kind="all"):
    """The rows by name, and the notes, of a comparison."""
    rows, notes = compare_runs([*map(str, args)], kind)
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}, notes


@pytest.fixture(scope="module")
def compared(run):
    return compare(run)


@pytest.fixture
def without_fits(compared, monkeypatch):
    """Refuse to fit another probe."""
    monkeypatch.setattr("kdpl.report.probes.load_image_clip", Mock(side_effect=AssertionError))


def correct_of(stage):
    return np.array([p.correct for p in read_predictions(stage)])


def plain_features(name, records):
    """Features [N, D] of digits, of what enters the projection, and their labels."""
    tower = load_image_clip(ClipConfig(name, "glyphs")).image_tower
    images = [digits.open_digit(record.source).resize((32, 32), 3) for record in records]
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    visual, read = tower.visual, []
    handle = visual.ln_post.register_forward_hook(lambda *hooked: read.append(hooked[2][:, 0]))
    with torch.no_grad():
        visual(tower.pixels(pixels))
    handle.remove()
    labels = np.array([record.label for record in records])
    return torch.nn.functional.normalize(read[0], dim=1).numpy(), labels


def plain_accuracy(c, x, y, z, truth):
    """Accuracy of scikit-learn's regression on x and y for z."""
    scale = np.sqrt(x.var(axis=0, ddof=1).sum())
    model = LogisticRegression(C=c, class_weight="balanced", max_iter=10_000)
    return model.fit(x / scale, y).score(z / scale, truth)


def test_a_run_stands_beside_zero_shot_and_linear_probes(run, compared):
    shown, notes = compared
    expected = ["run", *(f"zero-shot: {clip}" for clip in CLIPS.values())]
    probes = [f"linear probe: {clip}, 160 labels" for clip in CLIPS.values()]
    assert list(shown) == expected + probes
    stages = ("student", "zero_shot/teacher", "zero_shot/student")
    for name, stage in zip(expected, stages, strict=True):
        correct, row = correct_of(run / stage), shown[name]
        accuracy = read_results(run / stage)["test/acc"]
        assert row.accuracy.value == pytest.approx(accuracy, abs=1e-6)
        interval = wilson(int(correct.sum()), correct.size)
        assert row.accuracy.interval == pytest.approx(interval, abs=1e-6)
        if name != "run":
            student = correct_of(run / "student")
            interval = bootstrap_difference(student, correct)
            if np.array_equal(student, correct):
                # resampled, equal images stay equal: 95 % of draws have one if a share p differs
                share = 1 - 0.05 ** (1 / correct.size)
                interval = (-share, share)
            assert row.difference.interval == pytest.approx(interval, abs=0.0015)
    assert len([note for note in notes if "chosen by 5-fold cross-validation" in note]) == 2


def test_a_teacher_without_labels_is_its_zero_shot_clip(copy):
    shutil.rmtree(copy / "zero_shot/teacher")
    set_in(copy / "teacher", vision_prompts={"depth": 0}, text_prompts={"depth": 0})
    shown, notes = compare(copy, kind="zero-shot")
    assert len(shown) == 3, "no probes"
    accuracy = shown[f"zero-shot: {CLIPS['teacher']}"].accuracy.value
    assert accuracy == pytest.approx(correct_of(copy / "teacher").mean(), abs=1e-6)
    assert not [note for note in notes if "no zero-shot" in note]


def test_a_probe_is_of_the_validation_images_too_that_the_student_was_trained_on(copy):
    shutil.rmtree(copy / "probe")
    set_in(copy / "student", "data", train_on_val=True)
    splits = digits.read_digits()
    train, val = few_shot(splits.train, splits.val, 16, None, 1)
    x, y = plain_features("tiny-student", [*train, *val])
    scores, about = linear_probe(Run.find(copy), "student")
    assert about["labels"] == len(y) == 16 * 10 + len(splits.val)
    losses = {c: plain_loss(c, x, y, places_of(y) % 5) for c in STRENGTHS}
    assert losses[about["C"]] <= min(losses.values()) * 1.01
    expected = plain_accuracy(about["C"], x, y, *plain_features("tiny-student", splits.test))
    assert scores["acc"].mean() == pytest.approx(expected, abs=0.0012)


def test_where_something_is_missing_a_line_says_why_there_is_no_probe(copy, monkeypatch):
    shutil.rmtree(copy / "probe")
    gone = Mock(side_effect=DataError("digits are gone"))
    monkeypatch.setattr("kdpl.data.readers.digits.Digits.read", gone)
    shown, notes = compare(copy)
    assert list(shown) == ["copy", *(f"zero-shot: {clip}" for clip in CLIPS.values())]
    assert "no linear probe of the teacher's CLIP for copy: digits are gone" in notes[1]


@pytest.mark.usefixtures("without_fits")
def test_a_probe_is_kept_in_the_folder_and_not_fitted_again(run, compared, copy, capsys):
    for role, clip in CLIPS.items():
        row = compared[0][f"linear probe: {clip}, 160 labels"]
        accuracy = read_results(copy / "probe" / role)["test/acc"]
        assert row.accuracy.value == pytest.approx(accuracy, abs=1e-6)
        assert correct_of(copy / "probe" / role).mean() == pytest.approx(accuracy)
    assert compare(run) == compared
    # other labels are another probe
    set_in(copy / "teacher", "data", shots=8)
    with pytest.raises(AssertionError):
        compare(copy)
    assert "(data.init_args.shots is 16 there and 8 here): fitting" in capsys.readouterr().err


@pytest.mark.usefixtures("without_fits")
def test_a_probe_is_of_labels_and_not_only_of_the_paths_of_images(
    copy, compared, monkeypatch, capsys
):
    plain = digits.read_digits()
    other = [record._replace(label=(record.label + 1) % 10) for record in plain.train]
    with monkeypatch.context() as patch:
        patch.setattr(digits.Digits, "read", lambda _: replace(plain, train=tuple(other)))
        with pytest.raises(AssertionError):
            compare(copy)
    assert re.search(
        r"\(their labels is \w+ there and \w+ here\): fitting", capsys.readouterr().err
    )

    # without its images, the probe that is kept is shown
    def gone(_):
        raise DataError("the images are gone: restore them")

    monkeypatch.setattr(digits.Digits, "read", gone)
    assert list(compare(copy)[0].values())[1:] == list(compared[0].values())[1:]


@pytest.mark.parametrize("change", ["content", "time", "label"])
def test_images_that_changed_are_another_probe(change, tmp_path):
    image_folder(tmp_path / "pets")

    def made_from():
        data = in_folder(tmp_path / "pets", shots=None)
        return {**_labeled_images(data)}

    before, dog = made_from(), tmp_path / "pets/train/dog/0.png"
    assert made_from() == before
    (tmp_path / "pets/test/dog/0.png").unlink()
    assert made_from() == before
    if change == "content":
        noise(9, 9).save(dog)
    elif change == "time":
        os.utime(dog, (0, 2e9))
    else:
        (tmp_path / "pets/train/cat").rename(tmp_path / "pets/train/eel")
    assert made_from() != before


def test_under_base_to_novel_a_probe_is_of_the_base_classes(copy):
    shutil.rmtree(copy / "probe")
    for stage in ("teacher", "student"):
        set_in(copy / stage, "data", protocol="base_to_novel")
    change_vectors(copy / "student", num_base=5)
    scores, about = linear_probe(replace(Run.find(copy), read_only=True), "student")
    assert not (copy / "probe").exists()
    assert ([*scores], about["labels"]) == (["base_acc"], 80)

    splits = digits.read_digits()
    labeled, _ = few_shot(splits.train, splits.val, 16, None, 1)
    train, test = ([r for r in records if r.label < 5] for records in (labeled, splits.test))
    assert len(scores["base_acc"]) == len(test)
    features = (*plain_features("tiny-student", train), *plain_features("tiny-student", test))
    expected = plain_accuracy(about["C"], *features)
    assert scores["base_acc"].mean() == pytest.approx(expected, abs=0.0021)  # a test image
    # what is kept is of the same images
    linear_probe(Run.find(copy), "student")
    kept = read_predictions(copy / "probe/student")
    assert [p.source for p in kept] == [r.source for r in test]
    assert [p.correct for p in kept] == scores["base_acc"].tolist()


@pytest.mark.parametrize("student", [0.95, 0.9, 0.5])
def test_a_student_is_compared_with_both_probes_and_what_to_do_if_one_is_better(student):
    def scores(share):
        return {"acc": np.arange(200) < 200 * share}

    probes = {"teacher_probe": scores(0.94), "student_probe": scores(0.87)}
    said = against_probes({"student": scores(student), **probes}, "do this")
    assert ("do this" in said) is (student < 0.94)
    # of 200 images one of the two is right on so many more
    for probe in (0.87, 0.94):
        difference = student - probe
        error = 1.97 * (abs(difference) * (1 - abs(difference)) / 199) ** 0.5
        interval = f"({100 * (difference - error):+.1f} to {100 * (difference + error):+.1f}"
        assert f"{100 * difference:+.1f} points {interval}" in said
    assert ("not clear" in said) is (student == 0.95)
    assert against_probes(probes, "do this") is None


@pytest.mark.usefixtures("without_fits")
def test_runs_with_the_same_clips_share_baselines_but_for_probes_with_other_labels(
    run, copy, compared, monkeypatch
):
    shown, notes = compare(run, copy)
    assert list(shown) == ["run", "copy", *list(compared[0])[1:]]
    assert notes == compared[1]
    # what is kept is taken for that of another seed
    monkeypatch.setattr("kdpl.report.probes._labeled_images", lambda _: {})
    replace_in(copy / "teacher/config.yaml", "seed_everything: 1\n", "seed_everything: 2\n")
    for role in CLIPS:
        replace_in(copy / "probe" / role / PROBE_FILE, '"seed": 1', '"seed": 2')
        first, *rest = read_predictions(copy / "probe" / role)
        other = first.label_number + first.correct
        write_predictions(copy / "probe" / role, [replace(first, prediction_number=other), *rest])
    shown, notes = compare(run, copy)
    probes = [name for name in shown if name.startswith("linear probe")]
    assert probes == [
        f"linear probe: {clip}, 160 labels, of {name}"
        for clip in CLIPS.values()
        for name in ("run", "copy")
    ]
    assert [note.partition(": C")[0] for note in notes if ": C = " in note] == probes
    zero_shot = [name for name in shown if name.startswith("zero-shot")]
    assert zero_shot == [f"zero-shot: {clip}" for clip in CLIPS.values()]


def test_random_weights_and_too_many_labels_have_no_probe(copy, monkeypatch):
    shutil.rmtree(copy / "probe")
    run = Run.find(copy)
    with monkeypatch.context() as patch:
        patch.setattr("kdpl.report.probes.clip_of", lambda _: ClipConfig("tiny-student", "random"))
        with pytest.raises(DataError, match="not pretrained"):
            linear_probe(run, "student")
    monkeypatch.setattr("kdpl.report.probes._MOST_TERMS", 1599)
    with pytest.raises(DataError, match="160 labelled images"):
        linear_probe(run, "student")
