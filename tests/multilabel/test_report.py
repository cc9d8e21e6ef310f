"""The maths of the report of a run on several labels an image."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from kdpl.multilabel.report import STRENGTHS, average_precision_interval, below_probes, probed_map


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


def test_an_interval_is_that_of_average_precisions_of_drawn_images():
    draw = np.random.default_rng(3)
    has = draw.random(60) < 0.3
    scores = has + draw.normal(size=60)
    precisions = []
    for _ in range(400):
        some = draw.integers(60, size=60)
        if has[some].any():
            precisions.append(average_precision_score(has[some], scores[some]))
    expected = np.quantile(precisions, [0.025, 0.975])
    assert average_precision_interval(scores, has) == pytest.approx(expected, abs=0.05)
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
    assert "65.0 %" in said
    assert "linear probe of the student's network (70.0 %)" in said
    assert "teacher's CLIP" not in said
    of_both = below_probes({"distilled student": 0.4, **probes})
    assert "teacher's CLIP (50.0 %) and the linear" in of_both
    for of_student in ({"distilled student": 0.7}, {}):
        assert below_probes({**of_student, **probes}) is None
