"""The report's section on rejection, against counts by a loop."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import world

from kdpl.classifier import Classifier
from kdpl.confidence.held_out import HeldOutScores
from kdpl.confidence.report import rejection
from kdpl.errors import ArtifactError
from kdpl.report.run_folder import Run
from kdpl.runtime.predictions import read_predictions


def test_the_table_and_the_images_are_those_of_the_thresholds(student_run, tmp_path):
    folder = shutil.copytree(student_run, tmp_path / "student")
    predictions, classifier = read_predictions(student_run), folder / "classifier"
    # held-out images in which the lower half of the scores is often wrong, too few to show 1 %
    scores = torch.tensor([p.probability for p in predictions])[:200]
    held_out = HeldOutScores(1.0, scores, scores.clone(), scores > scores.quantile(0.4))
    held_out.save(classifier, Classifier.load(classifier).fingerprint())
    data = rejection(Run.find(folder))
    rows = {row["wanted"]: row for row in data["rows"]}
    assert data["more"].startswith(f"run python -m kdpl calibrate {classifier} IMAGES")
    assert "it takes 299 held-out images or more" in rows[0.01]["gap"]
    for wanted in (0.05, 0.1, 0.2):
        threshold = held_out.threshold(wanted)
        accepted = [p for p in predictions if p.probability >= threshold]
        wrong = sum(not p.correct for p in accepted) / len(accepted)
        expected = threshold, len(accepted) / len(predictions), pytest.approx(wrong)
        row = rows[wanted]
        assert (row["threshold"], row["coverage"], row["error"][0]) == expected
    # the images are of the least error that is shown
    shown = data["rejects"]
    rejected = [p for p in predictions if p.probability < held_out.threshold(0.05)]
    saved = sum(not p.correct for p in rejected)
    assert (shown["wanted"], shown["count"], shown["wrong"]) == (0.05, len(rejected), saved)
    assert len(shown["shown"]) == 24
    assert shown["shown"][0]["image"] == min(rejected, key=lambda p: p.probability)


def student_of(scores, correct):
    predictions = [
        SimpleNamespace(probability=score, correct=right)
        for score, right in zip(scores, correct, strict=True)
    ]
    stage = SimpleNamespace(predictions=predictions)
    classifier = SimpleNamespace(companions={}, folder=None)
    return SimpleNamespace(require=lambda _: stage, classifier=classifier)


def test_the_chart_is_the_error_of_the_surest_images_equal_ones_together():
    chart = rejection(student_of([0.9, 0.5, 0.7, 0.7], [True, False, False, True]))["chart"]
    (line,) = chart["lines"].values()
    expected = [(25.0, 0.0), (75.0, 100 / 3), (100.0, 50.0)]
    assert line == [pytest.approx(point) for point in expected]


def test_a_classifier_without_scores_and_a_run_without_student_say_so():
    assert "run python -m kdpl calibrate" in rejection(student_of([0.9], [True]))["gap"]
    with world.refused(ArtifactError, "there is no student"):
        rejection(Run(Path("run"), None, None))
