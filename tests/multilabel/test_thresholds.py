"""Thresholds of classes: the best F1."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from pages import NAMES, write_table
from PIL import Image
from runs import refused, rows_of
from sklearn.metrics import f1_score

from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.data.sources import open_source
from kdpl.multilabel.metrics import choose_thresholds, of_expected_counts


def one_class(probabilities, labels):
    logits = torch.tensor(probabilities, dtype=torch.float64).logit().float()
    (chosen,) = choose_thresholds(logits[:, None], torch.tensor(labels)[:, None])
    return chosen, logits.sigmoid().tolist()


@pytest.mark.parametrize("seed", range(2))
def test_no_threshold_has_a_better_f1(seed):
    # many probabilities are equal, and labels mostly follow them
    draw = np.random.default_rng(seed)
    probabilities = draw.uniform(0.05, 0.95, 60).round(1)
    labels = draw.random(60) < probabilities
    labels[:2] = [True, False]
    chosen, rounded = one_class(probabilities, labels)
    best = max(f1_score(labels, [p >= limit for p in rounded]) for limit in {0.0, *rounded})
    assert f1_score(labels, [p >= chosen for p in rounded]) == pytest.approx(best)
    # it stands between two images, so that no rounding moves one
    assert min(abs(p - chosen) for p in rounded) > 0.01
    # and is a half where no image has the class
    assert one_class(probabilities, [False] * 60)[0] == 0.5


@pytest.mark.parametrize("seed", range(2))
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


@pytest.fixture
def folder(several, tmp_path):
    """A copy of the classifier."""
    return shutil.copytree(several, tmp_path / "classifier")


@pytest.fixture
def labeled(table, tmp_path):
    """The test pages as a table of one split."""
    rows = [row for row in rows_of(table) if row["split"] == "test"]
    lines = [(table.parent / row["image"], row["label"]) for row in rows]
    return write_table(tmp_path / "labeled.csv", ("image", "label"), *lines)


def test_the_command_replaces_the_thresholds_in_the_folder_alone(folder, labeled, monkeypatch):
    opened = []

    def note(source, decoding):
        opened.append(decoding.background)
        return open_source(source, decoding)

    monkeypatch.setattr("kdpl.data.sources.open_source", note)
    monkeypatch.setattr("kdpl.data.parallel.cores", lambda: 0)
    config = json.loads((folder / "classifier.json").read_text())
    config["decoding"]["background"] = [1, 2, 3]
    (folder / "classifier.json").write_text(json.dumps(config))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["calibrate", str(folder), str(labeled)]) == 0
    assert {*opened} == {(1, 2, 3)}
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [name for name in after if after[name] != before[name]] == ["classifier.json"]
    now, then = (json.loads(files["classifier.json"]) for files in (after, before))
    assert now.pop("task") != then.pop("task")
    assert now == then
    # they are the ones for these images
    classifier, rows = Classifier.load(folder), rows_of(labeled)
    images = torch.stack([classifier.prepare(Image.open(row["image"])) for row in rows])
    labels = [[name in row["label"].split(";") for name in NAMES] for row in rows]
    with torch.inference_mode():
        chosen = choose_thresholds(classifier(images), torch.tensor(labels))
    assert classifier.task.thresholds == pytest.approx(chosen, abs=1e-5)


def test_invalid_input_of_the_command_is_refused(folder, labeled, table, capsys):
    def refuse(words, *options):
        refused(capsys, main(["calibrate", *map(str, options)]), words)

    refuse("several splits", folder, table)
    refuse("is a folder with one class per image", folder, table.parent)
    whole = labeled.read_text()
    for old, new, words in (
        (";", "|", "separate them by ';'"),
        ("three", "owl", "has the class 'owl'"),
    ):
        labeled.write_text(whole.replace(old, new))
        refuse(words, folder, labeled)
    rows = [(row["image"], "?") for row in rows_of(labeled)]
    write_table(labeled, ("image", "label"), *rows)
    refuse("has no row with a label", folder, labeled)


def test_predict_writes_names_and_scores_and_takes_one_threshold_for_all_classes(
    folder, table, capsys, classifier
):
    image = str(table.parent / "test0.png")
    assert main(["predict", str(folder), image, "--threshold=0"]) == 0
    row = next(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [*row] == ["path", "labels", "scores", "error"]
    assert row["labels"].count(";") == row["scores"].count(";") == 4
    scores = [float(score) for score in row["scores"].split(";")]
    assert scores == sorted(scores, reverse=True)
    doubt = "doubt about predictions is defined for images of one class each"
    for of_images, option, words in (
        (folder, "--threshold=2", "--threshold is 2.0"),
        (classifier, "--threshold=0.5", "--threshold is for several labels an image"),
        (folder, "--max-error=0.1", doubt),
        (folder, "--unknown", doubt),
        (folder, "--sets=0.9", doubt),
        (folder, "--calibrated", doubt),
    ):
        refused(capsys, main(["predict", str(of_images), image, option]), words)


def test_the_command_takes_one_label_a_row_and_names_of_classes(folder, labeled, tmp_path, capsys):
    rows = [(row["image"], "vier" if i % 2 else "one") for i, row in enumerate(rows_of(labeled))]
    one = write_table(tmp_path / "one.csv", ("image", "label"), *rows[:6])
    names = [("label", "name"), ("vier", "four"), ("one", "one"), ("drei", "three")]
    names = write_table(tmp_path / "names.csv", *names)
    assert main(["calibrate", str(folder), str(one), f"--class-names={names}"]) == 0
    said = re.findall(r"^ *(\w+): 0[.\d]+, (\d+)", capsys.readouterr().out, re.MULTILINE)
    assert dict(said) == {"four": "3", "one": "3", "three": "0", "two": "0", "zero": "0"}
