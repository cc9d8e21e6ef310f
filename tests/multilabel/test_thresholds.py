"""Thresholds of classes: the best F1, and a precision or recall that is kept."""

import csv
import json

import numpy as np
import pytest
import torch
from doubting import bursts
from scipy.stats import binom
from sklearn.metrics import f1_score

from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.data.sources import open_source
from kdpl.multilabel.thresholds import choose, of_expected_counts


def one_class(probabilities, labels, **wanted):
    logits = torch.tensor(probabilities, dtype=torch.float64).logit().float()
    (chosen,) = choose(logits[:, None], torch.tensor(labels)[:, None], **wanted)
    return chosen, logits.sigmoid().tolist()


def drawn(seed, count=60, decimals=1):
    """Rounded probabilities, of which many are equal, and labels that mostly follow them."""
    draw = np.random.default_rng(seed)
    probabilities = draw.uniform(0.05, 0.95, count).round(decimals)
    labels = draw.random(count) < probabilities
    labels[:2] = [True, False]
    return probabilities.tolist(), labels.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_has_a_better_f1(seed):
    probabilities, labels = drawn(seed)
    chosen, rounded = one_class(probabilities, labels)
    scores = {limit: f1_score(labels, [p >= limit for p in rounded]) for limit in [0.0, *rounded]}
    own = f1_score(labels, [p >= chosen.value for p in rounded])
    assert own == pytest.approx(max(scores.values()))
    assert chosen.problem is None
    # it stands between two images, so that no rounding moves one
    assert min(abs(p - chosen.value) for p in rounded) > 0.01


def upper_tail(hits, count, share):
    """Probability of at least so many hits."""
    return binom.sf(hits - 1, count, share)


@pytest.mark.parametrize("seed", range(3))
def test_a_wanted_precision_is_shown_by_the_accepted_images(seed):
    probabilities, labels = drawn(seed, 400, 2)
    chosen, rounded = one_class(probabilities, labels, precision=0.6)
    accepted = [label for p, label in zip(rounded, labels, strict=True) if p >= chosen.value]
    assert chosen.problem is None
    # so many hits would be rare at a smaller precision
    assert upper_tail(sum(accepted), len(accepted), 0.6) <= 0.05


def test_a_precision_is_kept_as_often_as_it_says():
    draw, failures = np.random.default_rng(0), 0
    for _ in range(200):
        # the precision of new images above a threshold t is (1 + t) / 2
        probabilities = draw.random(150)
        labels = draw.random(150) < probabilities
        chosen, _ = one_class(probabilities.tolist(), labels.tolist(), precision=0.7)
        failures += chosen.problem is None and (1 + chosen.value) / 2 < 0.7
    assert failures <= 0.05 * 200 + 3 * (200 * 0.05 * 0.95) ** 0.5


@pytest.mark.parametrize("size", [1, 20])
def test_a_precision_that_is_not_kept_is_promised_in_5_percent_of_draws_also_with_groups(size):
    draw, promised = np.random.default_rng(size), 0
    for _ in range(60):
        scores, correct, rows = bursts(draw, size)  # 6 % of errors
        logits = torch.logit(scores[rows].double())[:, None]
        (chosen,) = choose(logits, correct[rows][:, None], precision=0.95)
        promised += chosen.problem is None
    assert promised <= 3


@pytest.mark.parametrize("seed", range(3))
def test_a_wanted_recall_is_shown_by_the_fewest_images(seed):
    probabilities, labels = drawn(seed, 400, 2)
    chosen, rounded = one_class(probabilities, labels, recall=0.8)
    own = [p for p, label in zip(rounded, labels, strict=True) if label]
    found = sum(p >= chosen.value for p in own)
    assert chosen.problem is None
    assert upper_tail(found, len(own), 0.8) <= 0.05
    # with the images of the next probability left out, it would not be
    stricter = sum(p > min(each for each in own if each >= chosen.value) for p in own)
    assert upper_tail(stricter, len(own), 0.8) > 0.05


def test_a_recall_is_kept_as_often_as_it_says():
    draw, kept = np.random.default_rng(0), 0
    for _ in range(300):
        scores = draw.random(40)
        chosen, _ = one_class(scores.tolist(), [True] * 40, recall=0.8)
        # of new images, that share is above the threshold
        kept += 1 - chosen.value >= 0.8
    assert kept >= 0.95 * 300 - 3 * (300 * 0.95 * 0.05) ** 0.5


def test_what_no_threshold_reaches_is_said_with_the_best():
    labels = [True, False] * 10
    chosen, _ = one_class(np.linspace(0.9, 0.1, 20).tolist(), labels, precision=0.9)
    assert chosen.problem.startswith("no threshold shows a precision of 0.9, the best shows 0.")
    chosen, rounded = one_class(np.linspace(0.9, 0.1, 20).tolist(), labels, recall=0.9)
    assert chosen.problem == (
        "its 10 held-out images do not show a recall of 0.9, the best is 0.741"
    )
    assert all(p >= chosen.value for p, label in zip(rounded, labels, strict=True) if label)


@pytest.mark.parametrize("seed", range(3))
def test_as_many_unlabelled_images_have_a_class_as_its_probabilities_add_up_to(seed):
    draw = np.random.default_rng(seed)
    logits = draw.normal(draw.normal(size=4) - 1, 1.5, (50, 4))
    probabilities = 1 / (1 + np.exp(-logits))
    thresholds = of_expected_counts(torch.tensor(logits))
    for column, threshold in zip(probabilities.T, thresholds, strict=True):
        assert sum(column >= threshold) == max(1, round(sum(column)))

    # where all are unlikely, the most likely one has it, and where all are certain, all have it
    few, all_of_them = of_expected_counts(torch.tensor([[-9.0, 20.0], [-8.0, 30.0], [-7.0, 40.0]]))
    assert 1 / (1 + np.exp(8)) < few <= 1 / (1 + np.exp(7))
    assert all_of_them < 1


def test_a_class_without_an_image_has_one_half():
    chosen, _ = one_class([0.3, 0.2], [False, False])
    assert chosen.value == 0.5
    assert chosen.problem == "no held-out image has it"


@pytest.fixture
def own(run, tmp_path):
    """The classifier of the run, in a folder of its own, and a table of its test images."""
    folder = tmp_path / "classifier"
    Classifier.load(run / "student" / "classifier").save(folder)
    return folder


def labeled(table, tmp_path, split="test"):
    rows = [row for row in csv.DictReader(table.open(newline="")) if row["split"] == split]
    with (tmp_path / "own.csv").open("w", newline="") as file:
        lines = [(table.parent / row["image"], row["label"] or ";") for row in rows]
        csv.writer(file).writerows([("image", "label"), *lines])
    return tmp_path / "own.csv"


def test_the_command_replaces_the_thresholds_in_the_folder_alone(own, table, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    known = json.loads(before["classifier.json"])
    assert main(["thresholds", str(own), str(labeled(table, tmp_path)), "--recall=60%"]) == 0
    said = capsys.readouterr().out
    assert "class, threshold, images, precision, recall, F1" in said
    after = {path.name: path.read_bytes() for path in own.iterdir()}
    assert {name for name, content in after.items() if content != before[name]} == {
        "classifier.json"
    }
    now = json.loads(after["classifier.json"])
    assert now["task"] != known["task"]
    assert {**now, "task": 0} == {**known, "task": 0}
    assert Classifier.load(own).task.thresholds == tuple(now["task"]["thresholds"])


def test_the_command_says_what_cannot_be_had(own, table, tmp_path, capsys):
    assert main(["thresholds", str(own), str(labeled(table, tmp_path)), "--precision=0.99"]) == 0
    assert "no threshold shows a precision of 0.99, the best shows" in capsys.readouterr().out


def test_one_image_of_a_group_counts_for_a_wanted_precision(own, table, tmp_path, capsys):
    rows = [row for row in csv.DictReader(table.open(newline="")) if row["split"] == "test"]
    lines = [f"{table.parent / row['image']},one,{i // 6}" for i, row in enumerate(rows)]
    (tmp_path / "groups.csv").write_text("\n".join(["image,label,group", *lines]))
    for options, count in (([], 24), (["--precision=60%"], 4), (["--recall=60%"], 4)):
        said = said_of(capsys, own, tmp_path / "groups.csv", *options)
        (line,) = [line for line in said.splitlines() if line.startswith("  one: ")]
        assert line.split(", ")[1] == str(count)


def test_invalid_input_of_the_command_is_refused(own, table, tmp_path, capsys, classifier):
    table_of_one = labeled(table, tmp_path)
    both = ["--precision=90%", "--recall=90%"]
    assert main(["thresholds", str(own), str(table_of_one), *both]) != 0
    assert "each decide the thresholds alone" in capsys.readouterr().err
    assert main(["thresholds", str(own), str(table), "--empty-labels=no_class"]) != 0
    assert "several splits" in capsys.readouterr().err
    whole = table_of_one.read_text()
    table_of_one.write_text(whole.replace(";", "|"))
    assert main(["thresholds", str(own), str(table_of_one)]) != 0
    said = capsys.readouterr().err
    assert "which is a list of classes: give --label-separator '|'" in said
    table_of_one.write_text(whole.replace("three", "owl"))
    assert main(["thresholds", str(own), str(table_of_one)]) != 0
    assert "has the class 'owl', which the classifier does not have" in capsys.readouterr().err
    assert main(["thresholds", str(classifier), str(table_of_one)]) != 0
    assert "names one class for each image" in capsys.readouterr().err


def test_predict_takes_one_threshold_for_all_classes(own, table, capsys):
    image = str(table.parent / "test0.png")
    assert main(["predict", str(own), image, "--threshold=0"]) == 0
    row = next(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert row["labels"].count(";") == 4
    scores = [float(each) for each in row["scores"].split(";")]
    assert scores == sorted(scores, reverse=True)
    assert main(["predict", str(own), image, "--threshold=2"]) != 0
    assert "--threshold is 2.0, expected a number from 0 to 1" in capsys.readouterr().err


def test_one_class_for_each_image_has_no_threshold_of_classes(classifier, table, capsys):
    image = str(table.parent / "test0.png")
    assert main(["predict", str(classifier), image, "--threshold=0.5"]) != 0
    assert "--threshold is for several labels an image" in capsys.readouterr().err


def said_of(capsys, *options):
    assert main(["thresholds", *map(str, options)]) == 0
    return capsys.readouterr().out


def test_the_command_takes_one_label_a_row_and_names_of_classes_that_a_table_lacks(
    own, table, tmp_path, capsys
):
    images, names = [table.parent / f"test{number}.png" for number in range(6)], tmp_path / "n.csv"
    lines = [f"{image},{'vier' if number % 2 else 'one'}" for number, image in enumerate(images)]
    (tmp_path / "one.csv").write_text("\n".join(["image,label", *lines]))
    names.write_text("label,name\nvier,four\none,one\ndrei,three\n")
    said = said_of(capsys, own, tmp_path / "one.csv", f"--class-names={names}")
    cells = [line.split(", ") for line in said.splitlines() if ": 0" in line]
    counts = {name.split(":")[0].strip(): count for name, count, *_ in cells}
    assert counts == {"four": "3", "one": "3", "three": "0", "two": "0", "zero": "0"}

    lines = [f"{image},?" for image in images]
    (tmp_path / "none.csv").write_text("\n".join(["image,label", *lines]))
    options = [str(own), str(tmp_path / "none.csv"), f"--class-names={names}"]
    assert main(["thresholds", *options]) != 0
    assert "has no row with a label" in capsys.readouterr().err


def test_the_command_opens_images_as_the_classifier_does(own, table, tmp_path, capsys, monkeypatch):
    opened = []

    def note(source, decoding):
        opened.append(decoding)
        return open_source(source, decoding)

    config = json.loads((own / "classifier.json").read_text())
    config["decoding"]["background"] = [1, 2, 3]
    (own / "classifier.json").write_text(json.dumps(config))
    monkeypatch.setattr("kdpl.data.sources.open_source", note)
    monkeypatch.setattr("kdpl.data.parallel.cores", lambda: 0)
    said_of(capsys, own, labeled(table, tmp_path))
    assert {each.background for each in opened} == {(1, 2, 3)}
