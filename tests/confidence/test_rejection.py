"""The report's section on rejection, against counts by a loop."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import world
from report_pages import Page, make, put_together

from kdpl.classifier import Classifier
from kdpl.confidence.held_out import HeldOutScores
from kdpl.confidence.report.rejection import rejection
from kdpl.errors import ArtifactError
from kdpl.runtime.predictions import read_predictions


def test_the_table_and_the_images_are_those_of_the_thresholds(teacher_run, student_run, tmp_path):
    folder = put_together(tmp_path / "run", teacher_run, student_run)
    predictions, classifier = read_predictions(student_run), folder / "student" / "classifier"
    # held-out images in which the lower half of the scores is often wrong, too few to show 1 %
    scores = torch.tensor([p.probability for p in predictions])[:200]
    held_out = HeldOutScores(1.0, scores, scores.clone(), scores > scores.quantile(0.4))
    held_out.save(classifier, Classifier.load(classifier).fingerprint())
    page = Page(make(folder))
    text = page.texts["rejection"]
    assert "1 % it takes 299 held-out images or more" in text
    for wanted in (0.05, 0.1, 0.2):
        threshold = held_out.threshold(wanted)
        accepted = [p for p in predictions if p.probability >= threshold]
        wrong = sum(not p.correct for p in accepted)
        shares = f"{100 * len(accepted) / len(predictions):.1f} {100 * wrong / len(accepted):.1f} "
        assert f"{100 * wanted:.3g} % {threshold:.3f} {shares}" in text
    # the images are of the least error that is shown
    assert "Rejected at 5 %" in text
    rejected = [p for p in predictions if p.probability < held_out.threshold(0.05)]
    saved = sum(not p.correct for p in rejected)
    assert f"{len(rejected)} test images are rejected, of which {saved} would" in text
    shown = [a["alt"] for a in page.of("img") if a["alt"].startswith("rejected")]
    assert len(shown) == 24
    first = min(rejected, key=lambda p: p.probability)
    assert shown[0] == f"rejected test image {first.index}, of class {first.label}"


def student_of(scores, correct):
    predictions = [
        SimpleNamespace(probability=score, correct=right)
        for score, right in zip(scores, correct, strict=True)
    ]
    stage = SimpleNamespace(predictions=predictions)
    return SimpleNamespace(student=stage, classifier=SimpleNamespace(companions={}))


def test_the_chart_is_the_error_of_the_surest_images_equal_ones_together():
    chart = rejection(student_of([0.9, 0.5, 0.7, 0.7], [True, False, False, True]))["chart"]
    (line,) = chart["lines"]
    expected = [(25.0, 0.0), (75.0, 100 / 3), (100.0, 50.0)]
    assert line["points"] == [(chart["x"](x), chart["y"](y)) for x, y in expected]
    assert line["last"] == pytest.approx(50)


def test_many_images_are_thinned_out_and_the_last_stays():
    draw = np.random.RandomState(0)
    correct = draw.rand(5000) < 0.8
    (line,) = rejection(student_of(draw.rand(5000).tolist(), correct.tolist()))["chart"]["lines"]
    assert len(line["points"]) == 201
    assert line["last"] == pytest.approx(100 * (1 - correct.mean()))


def test_a_classifier_without_scores_and_a_run_without_student_say_so():
    assert "run python -m kdpl calibrate" in rejection(student_of([0.9], [True]))["gap"]
    with world.refused(ArtifactError, "there is no student"):
        rejection(SimpleNamespace(student=None))
