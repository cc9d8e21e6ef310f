import json
import re
import shutil
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from report_pages import Page, change_vectors, make, put_together
from resampling import bootstrap_difference
from sklearn.linear_model import LogisticRegression

from kdpl.__main__ import main
from kdpl.cli import command_names
from kdpl.clip import ClipConfig, load_image_clip
from kdpl.data.probe import STRENGTHS, choose_strength, held_out_loss
from kdpl.data.readers import digits
from kdpl.data.sampling import few_shot
from kdpl.errors import DataError
from kdpl.report.accuracy import advice_for, below_probes
from kdpl.report.intervals import wilson
from kdpl.report.probes import linear_probe
from kdpl.report.run_folder import Run
from kdpl.runtime.configs import find_config
from kdpl.runtime.predictions import read_predictions, read_results

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


def chosen(x, y, groups):
    return choose_strength(
        *(torch.from_numpy(np.ascontiguousarray(each)) for each in (x, y, groups))
    )


def places(labels):
    """Place of each image within its class: images of a class come in turns."""
    return np.array([sum(labels[:i] == y) for i, y in enumerate(labels)])


def test_c_has_the_least_log_loss_in_folds_as_far_as_there_are_labels():
    x, y = blobs(20, 3)
    fold_of = places(y) % 5
    losses = [plain_loss(c, x, y, fold_of) for c in STRENGTHS]
    rows, labels, folds = (torch.from_numpy(each) for each in (x, y, fold_of))
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
    assert strength == best(np.repeat(places(labels), 4) % 5) != best(places(y) % 5)


@pytest.fixture(scope="module")
def run(tmp_path_factory, teacher_run, student_run):
    return put_together(tmp_path_factory.mktemp("complete") / "run", teacher_run, student_run)


def compare(*args):
    """The rows by name, and the notes, that a comparison writes as JSON."""
    file = args[0].parent / "table.json"
    assert main(["compare", *map(str, args), f"--out={file}"]) == 0
    found = json.loads(file.read_text())
    assert len({row["row"] for row in found["rows"]}) == len(found["rows"])
    return {row["row"]: row for row in found["rows"]}, found["notes"]


@pytest.fixture(scope="module")
def compared(run):
    return compare(run)


def correct_of(stage):
    return np.array([p.correct for p in read_predictions(stage)])


def plain_features(name, sources):
    """Features of digits, image by image."""
    tower = load_image_clip(ClipConfig(name, "glyphs")).image_tower
    images = [digits.open_digit(source) for source in sources]
    pixels = [
        torch.from_numpy(np.array(image.resize((32, 32), 3))).permute(2, 0, 1)[None]
        for image in images
    ]
    visual, read = tower.visual, []
    # what enters the projection
    handle = visual.ln_post.register_forward_hook(lambda *each: read.append(each[2][:, 0]))
    with torch.no_grad():
        for each in pixels:
            visual(tower.pixels(each))
    handle.remove()
    found = torch.cat(read)
    return torch.nn.functional.normalize(found, dim=1).numpy()


def test_a_run_stands_beside_zero_shot_and_linear_probes(run, compared):
    shown, notes = compared
    expected = ["run", *(f"zero-shot: {clip}" for clip in CLIPS.values())]
    assert list(shown) == expected + [
        f"linear probe: {clip}, 160 labels" for clip in CLIPS.values()
    ]
    for name, stage in zip(
        expected, ("student", "zero_shot/teacher", "zero_shot/student"), strict=True
    ):
        correct, row = correct_of(run / stage), shown[name]
        assert row["accuracy"] == pytest.approx(
            100 * read_results(run / stage)["test/acc"], abs=1e-4
        )
        low, high = wilson(int(correct.sum()), correct.size)
        assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(
            (100 * low, 100 * high), abs=1e-4
        )
        if name != "run":
            interval = bootstrap_difference(correct_of(run / "student"), correct)
            found = [row["difference_low"], row["difference_high"]]
            assert found == pytest.approx([100 * bound for bound in interval], abs=0.15)
    assert len([note for note in notes if "chosen by 5-fold cross-validation" in note]) == 2


def test_a_teacher_without_labels_is_its_zero_shot_clip(run, tmp_path):
    without = shutil.copytree(run, tmp_path / "without")
    shutil.rmtree(without / "zero_shot/teacher")
    file = without / "teacher/config.yaml"
    config = yaml.safe_load(file.read_text())
    for tower in ("vision", "text"):
        config["model"]["init_args"][f"{tower}_prompts"]["depth"] = 0
    file.write_text(yaml.safe_dump(config))
    shown, notes = compare(without)
    assert shown[f"zero-shot: {CLIPS['teacher']}"]["accuracy"] == pytest.approx(
        100 * correct_of(without / "teacher").mean(), abs=1e-4
    )
    assert not [note for note in notes if "no zero-shot" in note]


@pytest.mark.parametrize("name", ["tiny-teacher", "tiny-student"])
def test_a_probe_is_that_of_scikit_learn_on_plain_features(name, compared):
    splits, (shown, notes) = digits.read_digits(), compared
    labeled, _ = few_shot(splits.train, splits.val, 16, None, 1)
    (x, y), (z, truth) = (
        (plain_features(name, [r.source for r in records]), np.array([r.label for r in records]))
        for records in (labeled, splits.test)
    )
    row = shown[f"linear probe: {name}, weights glyphs, 160 labels"]
    (note,) = [note for note in notes if note.startswith(f"{row['row']}: C = ")]
    c = float(re.search("C = ([0-9]+)", note)[1])
    losses = {other: plain_loss(other, x, y, places(y) % 5) for other in STRENGTHS}
    assert losses[c] <= min(losses.values()) * 1.01
    scale = np.sqrt(x.var(axis=0, ddof=1).sum())
    model = LogisticRegression(C=c, class_weight="balanced", max_iter=10_000).fit(x / scale, y)
    assert row["accuracy"] == pytest.approx(100 * model.score(z / scale, truth), abs=0.12)


def test_runs_with_the_same_clips_and_labels_have_the_same_baselines(run, compared):
    other = shutil.copytree(run, run.parent / "other")
    shown, notes = compare(run, other)
    assert list(shown) == ["run", "other", *list(compared[0])[1:]]
    assert notes == compared[1]


def without_data(patch, run):
    shutil.rmtree(run / "probe")
    patch.setattr(
        "kdpl.data.readers.digits.Digits.read",
        Mock(side_effect=DataError("dataset digits is gone")),
    )


def without_labels(_, run):
    config = run / "teacher" / "config.yaml"
    config.write_text(config.read_text().replace("    shots: 16\n", "    shots: 0\n"))


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (without_data, "no linear probe of the teacher's CLIP for run: dataset digits is gone"),
        (without_labels, "no linear probe of the teacher's CLIP for run: shots is 0"),
    ],
)
def test_where_something_is_missing_a_line_says_why_there_is_no_probe(
    break_it, words, run, tmp_path, monkeypatch
):
    copy = shutil.copytree(run, tmp_path / "run")
    break_it(monkeypatch, copy)
    shown, notes = compare(copy)
    assert list(shown) == ["run", *(f"zero-shot: {clip}" for clip in CLIPS.values())]
    assert words in notes[1]


def test_a_stages_folder_has_no_zero_shot_accuracy_and_its_teachers_labels(run, compared):
    shown, notes = compare(run / "student")
    probes = {name: row["accuracy"] for name, row in compared[0].items() if "probe" in name}
    assert {name: row["accuracy"] for name, row in shown.items() if name != "student"} == probes
    assert len([note for note in notes if "student has no test of tiny-" in note]) == 2


@pytest.mark.parametrize(("kind", "rows"), [("none", 1), ("zero-shot", 3)])
def test_baselines_can_be_left_out(kind, rows, run):
    shown, _ = compare(run, f"--baselines={kind}")
    assert len(shown) == rows


def test_a_probe_is_kept_in_the_folder_and_not_fitted_again(
    run, compared, tmp_path, monkeypatch, capsys
):
    kept = shutil.copytree(run, tmp_path / "kept")
    for role, clip in CLIPS.items():
        row = compared[0][f"linear probe: {clip}, 160 labels"]
        accuracy = read_results(kept / "probe" / role)["test/acc"]
        assert row["accuracy"] == pytest.approx(100 * accuracy, abs=1e-4)
        assert correct_of(kept / "probe" / role).mean() == pytest.approx(accuracy)
    monkeypatch.setattr("kdpl.report.probes.load_image_clip", Mock(side_effect=AssertionError))
    shown, notes = compare(shutil.copytree(kept, tmp_path / "run"))
    assert (shown, notes) == compared
    # other labels are another probe
    config = kept / "teacher/config.yaml"
    config.write_text(config.read_text().replace("    shots: 16\n", "    shots: 8\n"))
    with pytest.raises(AssertionError):
        compare(kept)
    said = "has a probe of something else (data.init_args.shots is 16 there and 8 here): fitting"
    assert said in capsys.readouterr().err


def test_under_base_to_novel_a_probe_is_of_the_base_classes(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("probe"))
    for stage in ("teacher", "student"):
        file = copy / stage / "config.yaml"
        file.write_text(file.read_text().replace("protocol: all\n", "protocol: base_to_novel\n"))
    change_vectors(copy / "student", num_base=5)
    probe = linear_probe(Run.find(copy), "student")
    assert (list(probe.results), probe.about["labels"]) == (["test/base_acc"], 80)

    splits = digits.read_digits()
    labeled, _ = few_shot(splits.train, splits.val, 16, None, 1)
    train, test = ([r for r in records if r.label < 5] for records in (labeled, splits.test))
    assert [p.source for p in probe.predictions] == [r.source for r in test]
    x, z = (plain_features("tiny-student", [r.source for r in each]) for each in (train, test))
    scale = np.sqrt(x.var(axis=0, ddof=1).sum())
    model = LogisticRegression(C=probe.about["C"], class_weight="balanced", max_iter=10_000)
    model.fit(x / scale, [r.label for r in train])
    expected = model.score(z / scale, [r.label for r in test])
    assert probe.results["test/base_acc"] == pytest.approx(expected, abs=0.0021)  # a test image


@pytest.mark.parametrize(("student", "words"), [(0.95, None), (0.9, "teacher"), (0.5, "both")])
def test_a_student_below_a_probe_is_said_first_with_both_figures_and_what_to_do(student, words):
    def scores(share):
        return {"acc": np.arange(200) < 200 * share}

    probes = {"teacher_probe": scores(0.94), "student_probe": scores(0.875)}
    said = below_probes({"student": scores(student), **probes}, "do this")
    if words is None:
        assert said is None
        return
    assert f"classifies {100 * student:.1f} % of the test images correctly" in said
    # of 200 images the probe is right on so many more
    more = 0.94 - student
    error = 1.97 * (more * (1 - more) / 199) ** 0.5
    found = re.search(
        r"of the teacher's CLIP \(94.0 %, (\S+) to (\S+) points more\): do this", said
    )
    assert [float(each) for each in found.groups()] == pytest.approx(
        [100 * (more - error), 100 * (more + error)], abs=0.1
    )
    assert ("of its own network (87.5 %" in said) is (words == "both")
    assert below_probes(probes, "do this") is None


def test_what_is_to_be_done_about_a_student_below_a_probe_is_there_and_not_done_already(
    run, tmp_path
):
    said = advice_for(Run.find(run))
    for name in re.findall(r"--student (\w+)", said):
        assert find_config(name, "student")
    (command,) = re.findall(r"python -m kdpl (\w+)", said)
    assert command in command_names()
    refined = shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((refined / "student/config.yaml").read_text())
    config["model"]["init_args"]["target"] = {
        "class_path": "kdpl.targets.refinement.target.Refined"
    }
    (refined / "student/config.yaml").write_text(yaml.safe_dump(config))
    assert advice_for(Run.find(refined)) == said.partition("refined, or ")[2]
    (refined / "search").mkdir()
    assert "label more" in advice_for(Run.find(refined))


def test_probes_of_one_network_with_other_labels_are_told_apart(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    config = other / "teacher/config.yaml"
    config.write_text(config.read_text().replace("seed_everything: 1\n", "seed_everything: 2\n"))
    shown, notes = compare(run, other)
    probes = [name for name in shown if name.startswith("linear probe")]
    assert probes == [
        f"linear probe: {clip}, 160 labels, of {name}"
        for clip in CLIPS.values()
        for name in ("run", "other")
    ]
    assert [note.partition(": C")[0] for note in notes if ": C = " in note] == probes
    assert [name for name in shown if name.startswith("zero-shot")] == [
        f"zero-shot: {clip}" for clip in CLIPS.values()
    ]


def test_the_report_says_it_above_everything_else(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    capsys.readouterr()
    header = Page(make(copy)).texts["header"]
    own = 100 * read_results(copy / "student")["test/acc"]
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "logistic" in line]
    assert said.startswith(f"The student classifies {own:.1f} % of the test images correctly, less")
    assert said in header
    assert header.index(said) < header.index("accuracy of the student")


def test_random_weights_and_too_many_labels_have_no_probe(run, monkeypatch):
    found = replace(Run.find(run), read_only=True)
    monkeypatch.setattr("kdpl.report.probes._stored", lambda *_: None)
    with monkeypatch.context() as patch:
        patch.setattr("kdpl.report.probes.clip_of", lambda _: ClipConfig("tiny-student", "random"))
        with pytest.raises(DataError, match="not pretrained"):
            linear_probe(found, "student")
    monkeypatch.setattr("kdpl.report.probes._MOST_TERMS", 1599)
    with pytest.raises(DataError, match="160 labelled images"):
        linear_probe(found, "student")
