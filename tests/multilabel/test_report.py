"""The report of a run on several labels an image."""

import shutil

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from kdpl.multilabel.report import average_precision_interval, below_probes, several_labels
from kdpl.multilabel.report.probe import STRENGTHS, probed_map
from kdpl.report.page import render
from kdpl.report.run_folder import Run
from kdpl.report.training import training
from kdpl.runtime.loggers import MetricsCSV


def test_the_page_has_scores_classes_and_images_instead_of_accuracies(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    for heading in (
        "Several labels",
        "Classes",
        "Which classes are predicted with which",
        "Images",
    ):
        assert f">{heading}</h" in page
    for other in ("Confusions", "Accuracy by class", "Calibration", "Where teacher and student"):
        assert other not in page
    assert page.count("data:image/webp") == 12
    assert "validation mAP, %" in page
    assert "validation accuracy" not in page


def test_what_is_shown_is_what_was_tested(run):
    data = several_labels(Run.find(run, trusted=True))
    assert data["images"] == 24
    assert [*data["models"]] == [
        "teacher's original CLIP",
        "student's original CLIP",
        "teacher",
        "distilled student",
        "linear probe of the teacher's CLIP",
        "linear probe of the student's network",
        "chance",
    ]
    for row, interval in data["classes"]:
        assert (
            interval[0] <= float(row["ap"]) <= interval[1] or interval[0] - float(row["ap"]) < 0.02
        )
    together, having = np.array(data["together"]), np.array(data["having"])
    assert (together <= having[:, None]).all()
    assert having.tolist() == [int(row["positives"]) for row, _ in data["classes"]]


def test_a_probe_is_a_logistic_regression_for_each_class_with_what_validation_images_choose():
    draw = np.random.default_rng(3)
    classes = draw.normal(size=(4, 8))

    def images(count):
        has = draw.random((count, 4)) < 0.4
        has[:, 3] = False
        features = has @ classes + draw.normal(size=(count, 8))
        return features / np.linalg.norm(features, axis=1, keepdims=True), has

    parts = [images(count) for count in (30, 80, 200)]
    x, y = parts[0]

    def precision(strength, number):
        rows, has = parts[number]
        scores = []
        for label in range(3):
            # by another way: the scale of features is a scale of weights, and so of C
            model = LogisticRegression(C=strength / x.var(axis=0).sum(), max_iter=1000)
            model.fit(x - x.mean(axis=0), y[:, label])
            margin = (rows - x.mean(axis=0)) @ model.coef_[0]
            scores.append(average_precision_score(has[:, label], margin))
        return np.mean(scores)

    tensors = [(torch.tensor(f).float(), torch.tensor(has)) for f, has in parts]
    best = max(STRENGTHS, key=lambda strength: precision(strength, 1))
    assert best != STRENGTHS[0]
    assert probed_map(*tensors) == pytest.approx(precision(best, 2), abs=1e-3)
    without = probed_map(tensors[0], None, tensors[2])
    assert without == pytest.approx(precision(STRENGTHS[0], 2), abs=1e-3)


def test_fidelity_is_said_of_the_classes_that_student_or_target_gives(run, tmp_path):
    shutil.copytree(run / "student", tmp_path / "student")
    logger = MetricsCSV(str(tmp_path / "student"))
    logger.log_metrics({"val/fidelity": 0.8125, "pool/unseen": 100.0}, step=9)
    copied = Run.find(tmp_path, trusted=True)
    assert training(copied)["fidelity"] == {
        "share": 0.8125,
        "images": 100,
        "several": True,
        "follows": True,
    }
    page = " ".join(render(copied).split())
    assert "on 81.2 % of the classes that either gives to 100 unlabelled images" in page


def test_an_interval_is_that_of_average_precisions_of_drawn_images():
    draw = np.random.default_rng(3)
    has = draw.random(60) < 0.3
    scores = has + draw.normal(size=60)
    low, high = average_precision_interval(scores, has)
    found = []
    for _ in range(2000):
        some = draw.integers(60, size=60)
        if has[some].any():
            found.append(average_precision_score(has[some], scores[some]))
    assert (low, high) == pytest.approx(np.quantile(found, [0.025, 0.975]), abs=0.05)
    assert average_precision_interval(scores, np.zeros(60, dtype=bool)) is None


def test_draws_without_an_image_of_the_class_do_not_count_as_average_precisions_of_0():
    # of 20 images one has the class, at the top: what is drawn with it has 1
    scores = np.linspace(1, 0, 20)
    assert average_precision_interval(scores, scores == 1) == (1.0, 1.0)


def test_a_student_below_a_probe_is_said_with_both_figures_and_none_above():
    probes = {
        "linear probe of the teacher's CLIP": 0.5,
        "linear probe of the student's network": 0.7,
    }
    said = below_probes({"distilled student": 0.65, **probes})
    assert "mAP is 65.0 %, less than with the same labels the linear probe of the student" in said
    assert "(70.0 %): label more images" in said
    assert "teacher's CLIP" not in said
    assert "teacher's CLIP (50.0 %) and the linear" in below_probes(
        {"distilled student": 0.4, **probes}
    )
    for of_student in ({"distilled student": 0.7}, {}):
        assert below_probes({**of_student, **probes}) is None
