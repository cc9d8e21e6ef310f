"""A finished classifier makes the predictions of the student's test, on every test image of the quickstart."""

import torch
from runs import rows_of

from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.data.readers.digits import open_digit


def test_predict_and_the_classifier_predict_as_the_student_in_its_test(classifier, student_run, tmp_path):
    tested, out = rows_of(student_run / "test_predictions.csv"), tmp_path / "table.csv"
    assert len(tested) == 899
    for row in tested:
        open_digit(row["source"]).save(tmp_path / f"{int(row['index']):03}.png")
    assert main(["predict", str(classifier), str(tmp_path), f"--out={out}"]) == 0
    assert [row["class"] for row in rows_of(out)] == [row["prediction"] for row in tested]
    loaded = Classifier.load(classifier)
    with torch.inference_mode():
        logits = loaded(torch.stack([loaded.prepare(open_digit(row["source"])) for row in tested]))
    assert [loaded.class_names[label] for label in logits.argmax(dim=1)] == [row["prediction"] for row in tested]
    saved = torch.tensor([float(row["probability"]) for row in tested])
    torch.testing.assert_close(logits.softmax(dim=1).amax(dim=1), saved, atol=2e-6, rtol=0)
