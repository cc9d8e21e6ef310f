"""The report of a run on several labels an image."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from kdpl.multilabel.report import average_precision_interval, several_labels
from kdpl.report.run_folder import Run


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
    ]
    for row, interval in data["classes"]:
        assert (
            interval[0] <= float(row["ap"]) <= interval[1] or interval[0] - float(row["ap"]) < 0.02
        )
    together, having = np.array(data["together"]), np.array(data["having"])
    assert (together <= having[:, None]).all()
    assert having.tolist() == [int(row["positives"]) for row, _ in data["classes"]]


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
