"""A classifier makes the same predictions in all its forms, on every test image of the quickstart."""

import onnxruntime
import pytest
import torch
from runs import rows_of

from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.data.readers.digits import open_digit, read_digits


@pytest.fixture(scope="module")
def of_classifier(classifier):
    """The test images, uint8 [899, 3, 32, 32], and the classifier's logits [899, 10]."""
    loaded = Classifier.load(classifier)
    images = torch.stack([loaded.prepare(open_digit(record.source)) for record in read_digits().test])
    with torch.inference_mode():
        return images, loaded(images)


def test_predict_and_the_classifier_predict_as_the_student_in_its_test(
    classifier, student_run, of_classifier, tmp_path
):
    tested = rows_of(student_run / "test_predictions.csv")
    assert len(tested) == 899
    for row in tested:
        open_digit(row["source"]).save(tmp_path / f"{int(row['index']):03}.png")
    assert main(["predict", str(classifier), str(tmp_path), f"--out={tmp_path / 'table.csv'}"]) == 0
    expected = [row["prediction"] for row in tested]
    names = Classifier.load(classifier).class_names
    assert [row["class"] for row in rows_of(tmp_path / "table.csv")] == expected
    assert [names[label] for label in of_classifier[1].argmax(dim=1)] == expected
    confidences = of_classifier[1].softmax(dim=1).amax(dim=1)
    saved = torch.tensor([float(row["probability"]) for row in tested])
    torch.testing.assert_close(confidences, saved, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("kind", "name"), [("onnx", "c.onnx"), ("torch", "c.pt2")])
def test_exported_files_have_the_classifiers_logits(kind, name, classifier, of_classifier, tmp_path):
    path = tmp_path / name
    assert main(["export", str(classifier), f"--format={kind}", f"--out={path}"]) == 0
    images, expected = of_classifier
    if kind == "onnx":
        logits = torch.from_numpy(onnxruntime.InferenceSession(path).run(["logits"], {"images": images.numpy()})[0])
    else:
        with torch.inference_mode():
            logits = torch.export.load(path).module()(images)[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert logits.argmax(dim=1).equal(expected.argmax(dim=1))
