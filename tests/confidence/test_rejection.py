"""The report's section on rejection, against counts by a loop."""

import re
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


def like_test_images(predictions):
    """Held-out images in which the lower half of the scores is often wrong, as many as show an error of 5 %."""
    scores = torch.tensor([p.probability for p in predictions])
    return HeldOutScores(1.0, scores, scores.clone(), scores > scores.quantile(0.4))


@pytest.fixture(scope="module")
def run(tmp_path_factory, teacher_run, student_run):
    folder = put_together(tmp_path_factory.mktemp("rejecting") / "run", teacher_run, student_run)
    read = Classifier.load(folder / "student/classifier")
    like_test_images(read_predictions(student_run)).save(
        folder / "student/classifier", read.fingerprint()
    )
    return folder


def test_the_table_and_the_images_are_those_of_the_thresholds(run, student_run):
    page, predictions = Page(make(run)), read_predictions(student_run)
    text, held_out = page.texts["rejection"], like_test_images(predictions)
    rejected = None
    for wanted in (0.01, 0.02, 0.05, 0.1, 0.2):
        threshold = held_out.threshold(wanted)
        accepted = [p for p in predictions if p.probability >= threshold]
        wrong = sum(not p.correct for p in accepted)
        shares = f"{100 * len(accepted) / len(predictions):.1f} {100 * wrong / len(accepted):.1f} "
        assert f"{100 * wanted:.3g} % {threshold:.3f} {shares}" in text
        rejected = rejected or [p for p in predictions if p.probability < threshold]
    saved = sum(not p.correct for p in rejected)
    assert (
        f"{len(rejected)} test images are rejected, of which {saved} would have been wrong" in text
    )
    least = [a["alt"] for a in page.of("img") if a["alt"].startswith("rejected")]
    assert len(least) == 24
    first = min(rejected, key=lambda p: p.probability)
    assert least[0] == f"rejected test image {first.index}, of class {first.label}"
    assert "if new images are exchangeable with the held-out ones" in text


def student_of(scores, correct):
    predictions = [
        SimpleNamespace(probability=score, correct=right)
        for score, right in zip(scores, correct, strict=True)
    ]
    stage = SimpleNamespace(predictions=predictions)
    return SimpleNamespace(student=stage, classifier=SimpleNamespace(companions={}))


def test_the_chart_is_the_error_of_the_surest_images_equal_ones_together():
    found = rejection(student_of([0.9, 0.5, 0.7, 0.7], [True, False, False, True]))["chart"]
    (line,) = found["lines"]
    expected = [(25.0, 0.0), (75.0, 100 / 3), (100.0, 50.0)]
    assert line["points"] == [(found["x"](x), found["y"](y)) for x, y in expected]
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


def test_an_error_that_is_not_shown_is_a_sentence_in_its_row(
    run, teacher_run, student_run, tmp_path
):
    folder = put_together(tmp_path / "run", teacher_run, student_run)
    read = Classifier.load(folder / "student/classifier")
    scores = torch.linspace(0, 1, 40)
    HeldOutScores(1.0, scores, scores.clone(), scores > 0).save(
        folder / "student/classifier", read.fingerprint()
    )
    text = Page(make(folder)).texts["rejection"]
    assert re.search(
        "1 % it takes 299 held-out images or more to show an error of 1%, not 40", text
    )
    assert "Rejected at 10 %" in text
