"""The report of a run on several labels an image."""

from runs import rows_of

from kdpl.multilabel.report import several_labels
from kdpl.report.run_folder import Run

NAMES = ("four", "one", "three", "two", "zero")


def test_the_page_has_scores_classes_and_images_instead_of_accuracies(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    for heading in ("Several labels", "Classes", "Images"):
        assert f">{heading}</h" in page
    for other in ("Confusions", "Accuracy by class", "Calibration", "Where teacher and student"):
        assert other not in page
    assert page.count("data:image/webp") == 12
    assert "validation mAP, %" in page
    assert "validation accuracy" not in page


def test_what_is_shown_is_what_was_tested(run):
    data = several_labels(Run.find(run, trusted=True))
    rows = rows_of(run / "student" / "test_predictions.csv")
    assert data["images"] == len(rows) == 24
    assert [*data["models"]] == [
        "teacher's original CLIP",
        "student's original CLIP",
        "teacher",
        "distilled student",
    ]
    assert [row["class"] for row in data["classes"]] == [*NAMES]
    positives = [sum(name in row["labels"].split(";") for row in rows) for name in NAMES]
    assert [int(row["positives"]) for row in data["classes"]] == positives
